"""Whatever a caller holds becomes an encoded image and UTF-8, or one clear refusal."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych_client import InvalidInput
from diptych_client._inputs import InputRules, encode_image, encode_item, encode_text
from diptych_client._limits import Limits

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


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
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
        (
            io.StringIO("picture"),
            "found a file object that reads str; accepted: a file object in binary mode",
        ),
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


class Pipe(io.RawIOBase):
    """Gives what has arrived so far, as raw pipes and sockets do."""

    def __init__(self, data: bytes | None) -> None:
        self._parts = None if data is None else [data[at : at + 1000] for at in range(0, len(data), 1000)]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:
        if self._parts is None:
            return None
        part = self._parts.pop(0) if self._parts else b""
        buffer[: len(part)] = part
        return len(part)


def test_a_raw_pipe_is_read_to_its_end():
    data = png(Image.fromarray(PICTURE)) + bytes(2002)
    assert encode_image(Pipe(data)) == data
    with pytest.raises(InvalidInput, match=r"found a file object with more than 1,500 bytes"):
        encode_image(Pipe(data), InputRules(Limits(max_image_bytes=1500)))


def test_a_pipe_of_another_process_is_read_to_its_end():
    code = "import os, time; [(os.write(1, b'x' * 1001), time.sleep(0.05)) for _ in range(2)]"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, bufsize=0) as writer:
        assert encode_image(writer.stdout) == b"x" * 2002


def test_a_pipe_that_does_not_wait_for_its_data_is_refused():
    with pytest.raises(InvalidInput, match=r"found a file object that reads NoneType; .* waits for its data"):
        encode_image(Pipe(None))


def test_a_file_object_that_breaks_is_refused():
    closed = io.BytesIO(b"data")
    closed.close()
    with pytest.raises(
        InvalidInput, match=r"found a file object that cannot be read \(I/O operation on closed"
    ):
        encode_image(closed)
    pipe = Pipe(b"data")
    pipe.readinto = lambda buffer: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    with pytest.raises(InvalidInput, match=r"found a file object that cannot be read \(Input/output error\)"):
        encode_image(pipe)


def test_what_the_server_would_refuse_for_its_size_never_leaves(tmp_path: Path):
    rules = InputRules(Limits(max_image_bytes=100, max_text_bytes=5))
    path = tmp_path / "large.jpg"
    path.write_bytes(bytes(101))
    for image, found in (
        (bytes(101), "101 bytes"),
        (path, r"'.*large\.jpg' of 101 bytes"),
        (io.BytesIO(bytes(101)), "a file object with more than 100 bytes"),
    ):
        with pytest.raises(InvalidInput, match=rf"^image: found {found}; accepted: at most 100 bytes$"):
            encode_image(image, rules)
    with pytest.raises(InvalidInput, match=r"^text: found 6 bytes; accepted: at most 5 bytes of UTF-8$"):
        encode_text("äöü", rules)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PIL image", "array"])
def test_a_large_picture_is_shrunk_to_its_longest_side(kind: str):
    photo = Image.effect_mandelbrot((900, 600), (-2, -1, 1, 1), 60).convert("RGB")
    buffer = io.BytesIO()
    if kind in ("JPEG", "PNG"):
        photo.save(buffer, kind)
    image = {"PIL image": photo, "array": np.asarray(photo)}.get(kind, buffer.getvalue())
    shrunk = encode_image(image, InputRules(shrink_to_px=300))
    assert decode(shrunk).size == (300, 200)
    error = np.asarray(decode(shrunk), float) - np.asarray(photo.resize((300, 200)), float)
    assert np.abs(error).mean() < 10


def test_a_small_picture_is_not_touched_by_shrinking():
    data = png(Image.fromarray(PICTURE))
    assert encode_image(data, InputRules(shrink_to_px=7)) == data


def test_a_shrunk_picture_keeps_its_transparency_and_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to view
    buffer = io.BytesIO()
    Image.new("RGBA", (900, 600), (10, 20, 30, 40)).save(buffer, "PNG", exif=exif, compress_level=0)
    shrunk = decode(encode_image(buffer.getvalue(), InputRules(shrink_to_px=300)))
    assert (shrunk.size, shrunk.mode) == ((200, 300), "RGBA")
    assert shrunk.getpixel((0, 0)) == pytest.approx((10, 20, 30, 40), abs=3)


def test_shrinking_leaves_what_it_cannot_read_to_the_server():
    photo = png(Image.effect_noise((900, 600), 50))
    for data in (photo[: len(photo) // 2], b"no picture"):
        assert encode_image(data, InputRules(shrink_to_px=300)) == data


def test_shrinking_leaves_the_callers_image_as_it_was(tmp_path: Path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (1600, 1200)).save(path)
    with Image.open(path) as picture:
        encode_image(picture, InputRules(shrink_to_px=300))
        assert picture.size == (1600, 1200)


def test_a_fetcher_gets_urls_and_only_these(tmp_path: Path):
    path = tmp_path / "picture.png"
    path.write_bytes(png(Image.fromarray(PICTURE)))
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return path.read_bytes()

    rules = InputRules(fetch=fetch)
    assert encode_image("https://example.org/a.png", rules) == encode_image(path, rules)
    assert asked == ["https://example.org/a.png"]
    with pytest.raises(InvalidInput, match="found a `fetch` that returns NoneType; accepted: bytes"):
        encode_image("https://example.org/a.png", InputRules(fetch=lambda url: None))
