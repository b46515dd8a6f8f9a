"""Whatever a caller holds becomes an encoded image and UTF-8, or one clear refusal."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych_client import InvalidInput
from diptych_client.inputs import encode_image, encode_item, encode_text

PICTURE = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_encoded_files_pass_untouched_in_every_form(tmp_path: Path):
    data = png(Image.fromarray(PICTURE)) + b"\0\0"
    path = tmp_path / "picture.png"
    path.write_bytes(data)

    assert encode_image(data) == data
    assert encode_image(bytearray(data)) == data
    assert encode_image(memoryview(data)) == data
    assert encode_image(path) == data
    assert encode_image(str(path)) == data
    assert encode_image(io.BytesIO(data)) == data
    with path.open("rb") as file:
        assert encode_image(file) == data


@pytest.mark.parametrize("array", [PICTURE, PICTURE[:, ::-1], np.asfortranarray(PICTURE)])
def test_an_array_arrives_pixel_for_pixel(array: np.ndarray):
    assert np.array_equal(np.asarray(decode(encode_image(array))), array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_pil_image_arrives_pixel_for_pixel(mode: str):
    image = Image.fromarray(PICTURE).convert(mode)
    received = decode(encode_image(image))
    assert received.mode == mode
    assert received.tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "F"])
def test_a_pil_image_that_png_cannot_hold_becomes_rgb(mode: str):
    assert decode(encode_image(Image.fromarray(PICTURE).convert(mode))).mode == "RGB"


def test_a_pil_image_is_sent_upright():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to view
    Image.fromarray(PICTURE).save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue()).size == (7, 5)
    assert decode(encode_image(decode(buffer.getvalue()))).size == (5, 7)


def test_nothing_is_sent_for_none():
    assert encode_item(None, "words") == (b"", b"words")
    assert encode_item(b"picture", None) == (b"picture", b"")


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_neither_image_nor_text_is_refused(text: str | None):
    with pytest.raises(
        InvalidInput, match=r"^image and text: found both empty; accepted: an image"
    ) as raised:
        encode_item(None, text)
    assert raised.value.field == "image and text"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "found 0 bytes; accepted: an encoded image file, or None for no image"),
        ("no/such.jpg", r"found 'no/such\.jpg' \(No such file or directory\); accepted: a readable file"),
        ("/", r"found '/' \(Is a directory\)"),
        ("a\0b", r"found 'a\\x00b' \(embedded null byte\)"),
        (
            "https://example.org/a.jpg",
            r"found the URL 'https://example\.org/a\.jpg'; .* URLs are never fetched",
        ),
        ("data:image/png;base64,AAAA", "found the URL 'data:image/png;base64,AAAA'"),
        (io.BytesIO(), "found a file object at its end"),
        (io.StringIO("picture"), "found a file object that reads str; accepted: binary mode"),
        (PICTURE[..., 0], r"found an array of shape \(5, 7\) and dtype uint8; accepted: shape \(H, W, 3\)"),
        (PICTURE / 255, r"found an array of shape \(5, 7, 3\) and dtype float64"),
        (PICTURE[:0], r"found an array of shape \(0, 7, 3\)"),
        (Image.new("RGB", (0, 4)), "found 0 x 4 pixels"),
        (3.5, "found float; accepted: a path, bytes, a binary file object, a PIL image"),
    ],
)
def test_an_image_that_is_none_is_refused_with_what_was_found(image: object, message: str):
    with pytest.raises(InvalidInput, match=f"^image: {message}") as raised:
        encode_image(image)
    assert raised.value.field == "image"


def test_an_empty_file_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(InvalidInput, match=r"empty\.jpg', an empty file; accepted: an encoded image file"):
        encode_image(path)


def test_a_damaged_pil_image_is_refused():
    data = png(Image.effect_noise((100, 100), 50))
    image = decode(data[: len(data) // 2])
    with pytest.raises(InvalidInput, match=r"^image: found a PIL image that cannot be read"):
        encode_image(image)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"words", "found bytes; accepted: str, or None for no text"),
        (3, "found int; accepted: str"),
        ("ab\ud800", r"found a lone surrogate U\+D800 at offset 2; accepted: text that UTF-8 can hold"),
    ],
)
def test_a_text_that_is_none_is_refused_with_what_was_found(text: object, message: str):
    with pytest.raises(InvalidInput, match=f"^text: {message}"):
        encode_text(text)
