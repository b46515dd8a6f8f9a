"""Image files as cameras, phones and programs write them: what is read, and what is refused."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from diptych.config.sections import TrainingLimits
from diptych_serving.preprocessing import InvalidInput, PreprocessingSpec, fit_image, format_of
from tests.helpers.bombs import flat, gif_of_a_large_frame, jpeg_segment, overlapping_exif
from tests.helpers.hostile_inputs import draw_leaf, encode, exif

SERVING = PreprocessingSpec(image_size_px=64, max_tokens=8)
TRAINING = SERVING.within(TrainingLimits())
TURNED_LEFT = 6


def heic(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def pixels(data: bytes, spec: PreprocessingSpec = SERVING) -> np.ndarray:
    return np.asarray(fit_image(data, spec), np.int16)


def exif_block(order: str, kind: int, orientation: int) -> bytes:
    """One entry: the orientation, as this type of integer."""
    head = b"Exif\0\0" + (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}LH", 8, 1)
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "L"}[kind], orientation)
    return head + struct.pack(f"{order}HHL", 0x0112, kind, 1) + value + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_an_orientation_is_applied_in_every_type_of_integer_and_byte_order(order: str, kind: int) -> None:
    photo = encode(draw_leaf(), "JPEG", quality=95)
    turned = photo[:2] + jpeg_segment(0xE1, exif_block(order, kind, TURNED_LEFT)) + photo[2:]
    expected = encode(Image.open(io.BytesIO(photo)).transpose(Image.Transpose.ROTATE_270))
    assert np.abs(pixels(turned) - pixels(expected)).mean() < 0.5


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "appended",
    [
        encode(flat("RGB", 4000, 3000), "JPEG", progressive=True),
        b"\0\0\0\x18ftypmp42" + bytes(100_000),
        b"\xff\xda\xff\xda" * 1000,
    ],
    ids=["a second image", "a film", "scans of nothing"],
)
def test_what_a_phone_appends_to_a_jpeg_does_not_count(progressive: bool, appended: bytes) -> None:
    photo = encode(flat("RGB", 4000, 3000), "JPEG", progressive=progressive)
    assert np.array_equal(pixels(photo + appended), pixels(photo))


def test_what_is_appended_to_a_webp_does_not_count() -> None:
    webp = encode(draw_leaf(), "WEBP", lossless=True)
    assert np.array_equal(pixels(webp + bytes(200_000)), pixels(webp))


def noise(mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((90, 60), 80).convert(mode)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"subsampling": 0}], ids=str
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_that_lacks_only_its_end_marker_is_answered(
    mode: str, options: dict[str, object], missing: int
) -> None:
    photo = encode(noise(mode), "JPEG", **options)
    assert np.array_equal(pixels(photo[:-missing]), pixels(photo))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("num_missing", [12, 100, 2000])
def test_a_jpeg_that_lacks_pixels_is_refused(progressive: bool, num_missing: int) -> None:
    photo = encode(noise(), "JPEG", progressive=progressive)
    with pytest.raises(InvalidInput, match=r"found a damaged file \(truncated"):
        fit_image(photo[:-num_missing], SERVING)


def test_a_jpeg_that_lacks_a_colour_is_refused() -> None:
    photo = encode(noise(), "JPEG", progressive=True)
    first_scan = photo.index(b"\xff\xda")
    of_brightness = photo[: photo.index(b"\xff\xda", first_scan + 2)]
    assert of_brightness[first_scan + 4] == 3  # the first scan holds all three
    alone = of_brightness[: first_scan + 4] + b"\1" + of_brightness[first_scan + 5 :]
    with pytest.raises(InvalidInput, match=r"damaged file"):
        fit_image(alone, SERVING)


def test_twelve_bits_in_a_png_of_sixteen_are_as_dark_as_in_other_viewers() -> None:
    """The brightest of 4,096 values is a 16th of white; nothing says that the file means 12 bits."""
    image = Image.fromarray(np.full((64, 64), 4095, np.uint16))
    assert pixels(encode(image)).max() == 15


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda image: encode(image, "TIFF"), 0),
        (lambda image: encode(image, "TIFF", compression="tiff_lzw"), 0),
        (lambda image: encode(image, "TIFF", compression="tiff_deflate", big_tiff=False), 0),
        (lambda image: encode(image, "AVIF", quality=95), 3),
        (heic, 3),
    ],
    ids=["TIFF", "TIFF, LZW", "TIFF, deflate", "AVIF", "HEIC"],
)
def test_a_format_for_training_alone_has_the_pixels_of_its_png(
    make: Callable[[Image.Image], bytes], tolerance: float
) -> None:
    leaf = draw_leaf().resize((640, 400))
    data = make(leaf)
    assert np.abs(pixels(data, TRAINING) - pixels(encode(leaf))).mean() <= tolerance
    with pytest.raises(InvalidInput, match=f"found a file in {format_of(data)}; accepted: a whole JPEG, PNG"):
        fit_image(data, SERVING)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["TIFF", "AVIF", "HEIC"])
def test_a_format_for_training_alone_is_turned_once(format: str, orientation: int) -> None:
    leaf, tags = draw_leaf().resize((640, 400)), exif(orientation).tobytes()
    data = heic(leaf, exif=tags) if format == "HEIC" else encode(leaf, format, exif=tags)
    turned = encode(leaf, exif=tags)
    upright = encode(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))))
    assert np.abs(pixels(data, TRAINING) - pixels(upright)).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_a_tiff_of_any_mode_is_converted(mode: str) -> None:
    leaf = draw_leaf()
    image = (
        Image.fromarray(np.asarray(leaf.convert("L"), np.uint16) << 8)
        if mode == "I;16"
        else leaf.convert(mode)
    )
    expected = encode(image.convert("RGB") if mode == "CMYK" else image)
    assert np.array_equal(pixels(encode(image, "TIFF"), TRAINING), pixels(expected))


def test_the_first_page_of_a_tiff_counts() -> None:
    leaf = draw_leaf()
    pages = encode(leaf, "TIFF", save_all=True, append_images=[leaf.rotate(90)])
    assert np.array_equal(pixels(pages, TRAINING), pixels(encode(leaf)))


def test_the_metadata_of_a_tiff_is_not_read() -> None:
    """Read by Pillow, these overlapping entries take 10 GB."""
    bomb = overlapping_exif()
    plain = encode(draw_leaf(), "TIFF")
    (start,) = struct.unpack_from("<L", plain, 4)
    (count,) = struct.unpack_from("<H", plain, start)
    needed = [plain[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
    entries = [struct.pack("<HHLL", 40_000 + number % 10_000, 7, 500_000, 8) for number in range(20_000)]
    directory = struct.pack("<H", len(needed) + len(entries)) + b"".join([*needed, *entries]) + bytes(4)
    data = plain[:4] + struct.pack("<L", len(plain) + len(bomb)) + plain[8:] + bomb + directory
    assert np.array_equal(pixels(data, TRAINING), pixels(plain, TRAINING))


def test_a_tiff_whose_tags_overlap_is_refused() -> None:
    data = bytearray(encode(draw_leaf(), "TIFF"))
    (start,) = struct.unpack_from("<L", data, 4)
    struct.pack_into("<HHLL", data, start + 2, 256, 7, 500_000, 8)
    with pytest.raises(InvalidInput, match=r"a damaged file \(its tags overlap\)"):
        fit_image(bytes(data), TRAINING)


def test_a_cameras_raw_file_is_refused_and_not_read_as_its_thumbnail() -> None:
    thumbnail = encode(draw_leaf(), "TIFF", tiffinfo={254: 1})
    with pytest.raises(InvalidInput, match=r"found a camera's raw file; accepted: a whole JPEG"):
        fit_image(thumbnail, TRAINING)


def test_a_tiff_of_32_bits_a_pixel_is_refused() -> None:
    measured = encode(Image.fromarray(np.full((64, 64), 0.5, np.float32)), "TIFF")
    with pytest.raises(InvalidInput, match=r"found pixels of 32 bits; accepted"):
        fit_image(measured, TRAINING)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "AVIF", "HEIC", "BMP"])
def test_training_has_limits_too(format: str) -> None:
    spec = SERVING.within(TrainingLimits(**{f"max_{format.lower()}_pixels": 5399}))
    data = heic(draw_leaf()) if format == "HEIC" else encode(draw_leaf(), format)
    with pytest.raises(
        InvalidInput,
        match=f"found 90 x 60 pixels in a {format}; accepted: at most 5,399 pixels in a {format}",
    ):
        fit_image(data, spec)


def test_a_photo_of_a_shop_in_png_is_taken_by_the_server_and_larger_ones_in_training() -> None:
    assert pixels(encode(flat("RGB", 3000, 3000))).shape == (64, 64, 3)
    large = encode(flat("L", 5000, 3000))
    assert pixels(large, TRAINING).shape == (64, 64, 3)
    with pytest.raises(
        InvalidInput, match=r"found 5000 x 3000 pixels in a PNG; accepted: at most 12,000,000 pi"
    ):
        fit_image(large, SERVING)


@pytest.mark.parametrize(
    ("start", "format"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", None),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", None),
    ],
)
def test_a_format_is_told_by_its_first_bytes(start: bytes, format: str | None) -> None:
    assert format_of(start + bytes(40)) == format


def test_a_frame_beyond_its_canvas_is_judged_by_its_own_size() -> None:
    """Before the file is opened: Pillow takes memory for it then."""
    with pytest.raises(
        InvalidInput, match=r"found 65000 x 2700 pixels in a GIF; accepted: at most 4,194,304"
    ):
        fit_image(gif_of_a_large_frame(65_000, 2_700), SERVING)
    small = gif_of_a_large_frame(80, 64)
    assert Image.open(io.BytesIO(small)).size == (80, 64)
