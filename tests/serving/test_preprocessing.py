"""Pixels and tokens, and what is refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from diptych_serving.preprocessing import (
    InvalidInput,
    PreprocessingSpec,
    Preprocessor,
    Row,
    fit_image,
)

TEXT = b"a red apple"


@pytest.fixture(scope="module")
def preprocessor() -> Preprocessor:
    words = {
        word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "apple"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return Preprocessor(PreprocessingSpec(image_size_px=32, max_tokens=8), tokenizer.to_str())


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def row(preprocessor: Preprocessor, image: bytes, text: bytes = b"") -> Row:
    (result,) = preprocessor.rows([(image, text)])
    if isinstance(result, InvalidInput):
        raise result
    return result


def colour_at_centre(preprocessor: Preprocessor, image: bytes) -> list[int]:
    return row(preprocessor, image).pixel_values[:, 16, 16].tolist()


def png_header(width: int, height: int) -> bytes:
    """The first bytes of a PNG that claims this size: all that a decompression bomb needs."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


def test_a_wide_picture_is_fitted_whole_onto_a_white_square(preprocessor: Preprocessor) -> None:
    pixels = row(preprocessor, encode(Image.new("RGB", (200, 50), (255, 0, 0)))).pixel_values
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    assert pixels[:, 16, 16].tolist() == [255, 0, 0]
    assert pixels[:, 2, 16].tolist() == [255, 255, 255]


def test_a_sliver_of_one_pixel_height_keeps_one_pixel(preprocessor: Preprocessor) -> None:
    pixels = row(preprocessor, encode(Image.new("RGB", (4000, 1), (9, 9, 9)))).pixel_values
    assert (pixels == 9).sum() == 3 * 32


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_white(preprocessor: Preprocessor, mode: str) -> None:
    assert colour_at_centre(preprocessor, encode(Image.new(mode, (64, 64)))) == [255, 255, 255]


def test_a_palette_with_transparency_becomes_white(preprocessor: Preprocessor) -> None:
    image = Image.new("P", (64, 64), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert colour_at_centre(preprocessor, encode(image, transparency=0)) == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled_and_not_clipped(preprocessor: Preprocessor) -> None:
    image = Image.fromarray(np.full((64, 64), 0x8000, np.uint16))
    assert colour_at_centre(preprocessor, encode(image)) == [128, 128, 128]


def test_cmyk_jpeg_is_converted(preprocessor: Preprocessor) -> None:
    red, green, blue = colour_at_centre(
        preprocessor, encode(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG")
    )
    assert red > 240
    assert green < 15
    assert blue < 15


def test_exif_orientation_is_applied(preprocessor: Preprocessor) -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 64, 32))  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    pixels = row(preprocessor, encode(image, "JPEG", exif=exif, quality=95)).pixel_values
    assert pixels[0, 4, 16] < 20
    assert pixels[0, 28, 16] > 235


def test_the_first_frame_of_an_animation_counts(preprocessor: Preprocessor) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert colour_at_centre(preprocessor, data) == [255, 0, 0]


def test_a_large_jpeg_decoded_at_reduced_scale_keeps_its_colours(preprocessor: Preprocessor) -> None:
    data = encode(Image.new("RGB", (3000, 2000), (10, 120, 200)), "JPEG", quality=95)
    assert np.allclose(colour_at_centre(preprocessor, data), (10, 120, 200), atol=3)


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 500), (640, 480), (1600, 200)])
def test_a_jpeg_decoded_at_reduced_scale_looks_like_the_whole_one(size: tuple[int, int]) -> None:
    spec = PreprocessingSpec(image_size_px=64, max_tokens=8)
    colours = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    data = encode(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC), "JPEG", quality=90)
    whole = fit_image(encode(Image.open(io.BytesIO(data)).convert("RGB")), spec)
    difference = np.abs(np.asarray(fit_image(data, spec), np.int16) - np.asarray(whole, np.int16))
    assert difference.mean() < 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"just words, not a picture", "image: found 25 bytes in no known format; accepted: a whole JPEG"),
        (
            encode(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")[:900],
            "image: found a damaged file",
        ),
        (
            png_header(20_000, 10_000),
            "found 20000 x 10000 pixels in a PNG; accepted: at most 12,000,000 pixels in a PNG",
        ),
        (png_header(4001, 3000), "found 4001 x 3000 pixels in a PNG; accepted: at most 12,000,000 pixels in"),
        (b"\0" * (20 * 2**20 + 1), "image: found 20,971,521 bytes; accepted: at most 20,971,520 bytes"),
        (
            encode(Image.new("RGB", (8, 8)), "TIFF"),
            "found a file in TIFF; accepted: a whole JPEG, PNG",
        ),
    ],
    ids=["text", "truncated JPEG", "200 megapixels", "12.003 megapixels", "too many bytes", "TIFF"],
)
def test_a_picture_that_cannot_be_used_is_refused(
    preprocessor: Preprocessor, image: bytes, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        row(preprocessor, image, TEXT)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WebP", "GIF", "BMP"])
def test_base64_text_is_refused_as_what_it_is(preprocessor: Preprocessor, format: str) -> None:
    file = encode(Image.new("RGB", (64, 64)), format)
    for text in (
        base64.b64encode(file),
        base64.encodebytes(file),
        base64.urlsafe_b64encode(file).rstrip(b"="),
        b"data:image/any;base64," + base64.b64encode(file),
    ):
        found = f"image: found {len(text):,} bytes of base64 text of a {format} file; accepted: a whole JPEG"
        with pytest.raises(InvalidInput, match=found):
            row(preprocessor, text, TEXT)


def test_base64_text_of_something_else_is_no_known_format(preprocessor: Preprocessor) -> None:
    with pytest.raises(InvalidInput, match="image: found 44 bytes in no known format"):
        row(preprocessor, base64.b64encode(b"some words that are no image at all"[:32]), TEXT)


def test_text_is_padded_to_one_length_with_a_mask(preprocessor: Preprocessor) -> None:
    result = row(preprocessor, b"", TEXT)
    assert result.input_ids.tolist() == [2, 4, 5, 6, 3, 0, 0, 0]
    assert result.attention_mask.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert not result.image_present


def test_a_long_text_is_cut_to_the_token_limit(preprocessor: Preprocessor) -> None:
    assert row(preprocessor, b"", b"red " * 500).attention_mask.tolist() == [1] * 8


@pytest.mark.parametrize("text", [b"", b"   \n\t"])
def test_blank_text_is_absent(preprocessor: Preprocessor, text: bytes) -> None:
    assert not row(preprocessor, encode(Image.new("RGB", (8, 8))), text).attention_mask.any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"caf\xe9", "text: found byte 0xe9 at offset 3, which is not UTF-8; accepted: UTF-8"),
        (b"a" * 2**20, "text: found 1,048,576 bytes; accepted: at most 65,536 bytes of UTF-8"),
        (b"", "image and text: found both empty; accepted: an image file, a text, or both"),
    ],
    ids=["not UTF-8", "a megabyte", "nothing at all"],
)
def test_text_that_cannot_be_used_is_refused(preprocessor: Preprocessor, text: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        row(preprocessor, b"", text)


def test_a_bad_row_is_an_error_in_its_place_and_harms_no_other(preprocessor: Preprocessor) -> None:
    good = encode(Image.new("RGB", (8, 8), "red"))
    alone = row(preprocessor, good, TEXT)
    first, bad, last = preprocessor.rows([(good, TEXT), (b"broken", TEXT), (good, TEXT)])
    assert isinstance(bad, InvalidInput)
    for found in (first, last):
        assert isinstance(found, Row)
        assert np.array_equal(found.pixel_values, alone.pixel_values)
        assert np.array_equal(found.input_ids, alone.input_ids)


def test_what_is_saved_preprocesses_alike(preprocessor: Preprocessor, tmp_path: Path) -> None:
    preprocessor.save(tmp_path)
    again = Preprocessor.load(tmp_path)
    image = encode(Image.effect_noise((70, 50), 80))
    assert again.spec == preprocessor.spec
    assert np.array_equal(row(again, image, TEXT).pixel_values, row(preprocessor, image, TEXT).pixel_values)
    assert np.array_equal(row(again, image, TEXT).input_ids, row(preprocessor, image, TEXT).input_ids)
