"""Every image leaves in a form that the server takes, and no file can hold up the caller's process."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych_client import InvalidInput, Limits
from diptych_client._image_files import read_header
from diptych_client._inputs import InputRules, encode_image, is_at_hand

# Small, so that the tests are fast: 100 x 100 pixels of a JPEG go out as they are, 40 x 40 of other files.
# Up to 60 x 60 are converted.
LIMITS = Limits(
    max_jpeg_pixels=10_000,
    max_png_pixels=1_600,
    max_webp_pixels=1_600,
    max_gif_pixels=1_600,
    max_bmp_pixels=1_600,
    max_converted_pixels=3_600,
)
RULES = InputRules(LIMITS)
SMALL, LARGE, TOO_LARGE = (40, 30), (60, 50), (70, 60)


def drawing(size: tuple[int, int]) -> Image.Image:
    return Image.effect_mandelbrot(size, (-2, -1, 1, 1), 60).convert("RGB")


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def load(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def difference(image: Image.Image, expected: Image.Image) -> float:
    """Mean difference in grey levels."""
    one, other = (np.asarray(each.convert("RGB"), float) for each in (image, expected))
    return float(np.abs(one - other).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_file_that_the_server_takes_goes_out_as_it_is(kind: str):
    data = save(drawing(SMALL), kind)
    assert encode_image(data, RULES) == data


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_a_file_too_large_for_the_server_is_scaled_down(kind: str):
    sent = load(encode_image(save(drawing(LARGE), kind), RULES))
    assert sent.format == "JPEG"
    assert sent.width * sent.height <= 1_600
    assert sent.width / sent.height == pytest.approx(6 / 5, rel=0.05)
    assert difference(sent, drawing(LARGE).resize(sent.size)) < 10


@pytest.mark.parametrize("kind", ["AVIF", "TIFF"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_file_of_a_format_that_the_server_does_not_take_is_converted(kind: str, size: tuple[int, int]):
    sent = load(encode_image(save(drawing(size), kind), RULES))
    assert sent.format == {SMALL: "PNG", LARGE: "JPEG"}[size]
    assert difference(sent, drawing(size).resize(sent.size)) < 10


def test_a_heic_photo_is_converted():
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(drawing((64, 48))).save(buffer, format="HEIF", quality=90)
    sent = load(encode_image(buffer.getvalue()))
    assert (sent.format, sent.size) == ("PNG", (64, 48))
    assert difference(sent, drawing((64, 48))) < 10


def test_a_heic_photo_without_its_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", {name: how for name, how in Image.OPEN.items() if name != "HEIF"})
    photo = struct.pack(">L4s4sL4s", 20, b"ftyp", b"heic", 0, b"mif1") + bytes(100)
    with pytest.raises(InvalidInput, match=r"HEIC, which cannot be read here; .*'diptych-client\[heic\]'"):
        encode_image(photo)


@pytest.mark.parametrize(
    ("kind", "options"), [("TIFF", {}), ("AVIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})]
)
def test_a_converted_image_stands_upright(kind: str, options: dict[str, object]):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to view
    data = save(drawing(LARGE), kind, exif=exif, **options)
    sent = load(encode_image(data, RULES))
    assert sent.height > sent.width
    expected = drawing(LARGE).transpose(Image.Transpose.ROTATE_270)
    assert difference(sent, expected.resize(sent.size)) < 10
    assert sent.getexif().get(0x0112, 1) == 1


def test_an_orientation_that_a_phone_wrote_as_a_long_is_heeded():
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHLL", 0x0112, 4, 1, 6) + bytes(4)
    image = drawing(SMALL)
    image.info["exif"] = exif
    assert load(encode_image(image)).size == (30, 40)


@pytest.mark.parametrize("kind", ["PIL image", "array"])
def test_a_photo_of_twelve_megapixels_in_memory_is_sent(kind: str):
    photo = Image.linear_gradient("L").resize((4000, 3000)).convert("RGB")
    sent = load(encode_image(photo if kind == "PIL image" else np.asarray(photo)))
    assert (sent.format, sent.size) == ("JPEG", (2048, 1536))
    assert difference(sent, photo.resize(sent.size)) < 1


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_a_large_opaque_image_in_memory_is_sent_as_a_jpeg(mode: str):
    image = drawing(LARGE).convert(mode)
    sent = load(encode_image(image, RULES))
    assert (sent.format, sent.size) == ("JPEG", (43, 36))
    assert difference(sent, image.convert("RGB").resize(sent.size)) < 10


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_transparency_is_kept(mode: str, size: tuple[int, int]):
    colour = {"L": (120, 60), "P": (120, 60), "R": (120, 90, 60, 60)}[mode[0]]
    image = Image.new({"La": "LA", "RGBa": "RGBA"}.get(mode, mode), size, colour)
    sent = load(encode_image(image.convert(mode) if image.mode != mode else image, RULES))
    assert sent.format == "PNG"
    assert sent.width * sent.height <= 1_600
    assert sent.convert("RGBA").getpixel((5, 5))[3] == 60


def test_a_transparent_palette_is_kept_when_scaled():
    image = Image.new("P", LARGE, 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.info["transparency"] = 1
    assert load(encode_image(image, RULES)).convert("RGBA").getpixel((5, 5))[3] == 0


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_sixteen_bits_stay_sixteen_bits(mode: str, size: tuple[int, int]):
    order = ">" if mode == "I;16B" else "<"
    image = Image.frombytes(mode, size, np.full(size[0] * size[1], 40_000, f"{order}u2").tobytes())
    sent = load(encode_image(image, RULES))
    assert (sent.format, sent.mode) == ("PNG", "I;16")
    assert sent.getpixel((5, 5)) == 40_000


@pytest.mark.parametrize("mode", ["F", "I"])
def test_an_image_whose_white_is_unknown_is_refused(mode: str):
    with pytest.raises(InvalidInput, match=f"found a PIL image of mode {mode}, whose white is unknown"):
        encode_image(Image.new(mode, (5, 5)))


def test_an_image_in_memory_that_is_too_large_as_a_png_becomes_a_jpeg():
    noise = Image.effect_noise((200, 200), 20).convert("RGB")
    sent = encode_image(noise, InputRules(Limits(max_image_bytes=30_000)))
    assert load(sent).format == "JPEG"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF"])
def test_a_file_with_too_many_pixels_is_refused(kind: str):
    size = (120, 100) if kind == "JPEG" else TOO_LARGE
    most = {"JPEG": "10,000", "GIF": "1,600"}.get(kind, "3,600")
    found = f"{size[0]} x {size[1]} pixels in a {kind}"
    message = f"^image: found {found}; accepted: at most {most} pixels in a {kind}$"
    with pytest.raises(InvalidInput, match=message):
        encode_image(save(drawing(size), kind), RULES)


def test_conversion_can_be_switched_off():
    rules = InputRules(Limits(max_png_pixels=1_600, max_converted_pixels=0))
    tiff = save(drawing(SMALL), "TIFF")
    assert encode_image(tiff, rules) == tiff
    with pytest.raises(InvalidInput, match=r"found 60 x 50 pixels in a PNG; accepted: at most 1,600 pixels"):
        encode_image(save(drawing(LARGE), "PNG"), rules)


def test_a_format_that_the_server_takes_by_its_own_settings_goes_out_as_it_is():
    tiff = save(drawing(SMALL), "TIFF")
    assert encode_image(tiff, InputRules(Limits(max_tiff_pixels=10_000))) == tiff


def test_a_progressive_jpeg_that_is_too_much_for_the_server_is_sent_in_another_form():
    data = save(drawing((600, 400)), "JPEG", progressive=True)
    header = read_header(data)
    assert header is not None
    assert header.coefficients == 360_000  # each pixel's brightness, and two colours at half the resolution
    assert header.scanned_samples > 5 * header.pixels
    assert encode_image(data) == data
    for limits in (Limits(max_jpeg_coefficients=359_999), Limits(max_jpeg_scanned_samples=1_000_000)):
        sent = load(encode_image(data, InputRules(limits)))
        assert (sent.format, sent.size) == ("PNG", (600, 400))
        assert difference(sent, load(data)) == 0


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "TIFF"])
def test_a_damaged_file_that_must_be_converted_is_refused(kind: str):
    data = save(Image.effect_noise(LARGE, 50).convert("RGB"), kind)
    with pytest.raises(InvalidInput, match=rf"^image: found a damaged {kind} file \("):
        encode_image(data[: len(data) * 2 // 3], RULES)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("DIB", {}),
    ],
)
def test_the_size_in_a_header_is_the_one_that_a_decoder_finds(kind: str, options: dict[str, object]):
    data = save(drawing((41, 37)), kind, **options)
    if kind == "DIB":  # the first BMP of all
        data = b"BM" + bytes(8) + struct.pack("<LLHHHH", 26, 12, 41, 37, 1, 24)
    header = read_header(data)
    assert header is not None
    assert (header.width, header.height) == (41, 37)


def test_the_size_of_a_webp_with_transparency_or_frames_is_read():
    frames = [drawing((41, 37)), drawing((41, 37)).rotate(90)]
    for data in (
        save(frames[0].convert("RGBA"), "WEBP", quality=50, exif=Image.Exif()),
        save(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
    ):
        header = read_header(data)
        assert header is not None
        assert (header.width, header.height) == (41, 37)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF"])
def test_any_beginning_of_a_file_is_looked_at_without_a_crash(kind: str):
    data = save(drawing(SMALL), kind)
    for num_bytes in range(1, 64):
        read_header(data[:num_bytes])


def overlapping_tags(num_bytes: int) -> bytes:
    """A TIFF whose tags all hold the same bytes: to read all of them takes a quarter of the square."""
    num_tags = num_bytes // 24
    tags = b"".join(struct.pack(">HHLL", 1000 + tag, 7, num_bytes // 2, 8) for tag in range(num_tags))
    return b"MM\0*" + struct.pack(">LH", 8, num_tags) + tags + bytes(num_bytes // 2 + 100)


MANY = 600_000


def jpeg_with(exif: bytes) -> bytes:
    plain = save(drawing(SMALL), "JPEG")
    parts = [exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    segments = (b"\xff\xe1" + struct.pack(">H", 8 + len(part)) + b"Exif\0\0" + part for part in parts)
    return plain[:2] + b"".join(segments) + plain[20:]


@pytest.mark.parametrize(
    ("kind", "shrink_to_px"),
    [("JPEG", 0), ("JPEG", 20), ("TIFF", 0), ("WEBP", 0), ("PNG", 0), ("AVIF", 0), ("PIL image", 0)],
)
def test_metadata_that_explodes_costs_nothing(kind: str, shrink_to_px: int, tmp_path: Path):
    """Pillow needs 10 s and 4 GB for each of these."""
    tags = overlapping_tags(MANY)
    if kind == "JPEG":
        data = jpeg_with(tags)
    elif kind == "TIFF":
        data = tags
    elif kind == "AVIF":  # libavif wants the orientation there, whatever else there is
        data = save(drawing(SMALL), "AVIF")
        size = len(tags)
        data = save(drawing(SMALL), "AVIF", exif=_small_exif(size)).replace(_small_exif(size), tags[:size])
    else:
        data = save(drawing(LARGE), "WEBP" if kind == "PIL image" else kind, exif=b"Exif\0\0" + tags)
    path = tmp_path / "bomb"
    path.write_bytes(data)
    code = """
import resource, sys
from PIL import Image
from diptych_client import InvalidInput, Limits
from diptych_client._inputs import InputRules, encode_image
limits = Limits(max_png_pixels=1_600, max_webp_pixels=1_600, max_converted_pixels=3_600)
image = Image.open(sys.argv[1]) if sys.argv[2] == "PIL image" else open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    encode_image(image, InputRules(limits, shrink_to_px=int(sys.argv[3]) or None))
except InvalidInput as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), kind, str(shrink_to_px)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 100 * 2**10  # KiB


def _small_exif(num_bytes: int) -> bytes:
    return b"MM\0*" + struct.pack(">LH", 8, 0) + b"\x55" * (num_bytes - 10)


def test_files_that_go_out_as_they_are_need_no_pillow(tmp_path: Path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(save(drawing(SMALL), "JPEG"))
    code = """
import sys
from diptych_client._inputs import encode_image
print(len(encode_image(sys.argv[1])), {"PIL", "numpy"} & set(sys.modules))
"""
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"{path.stat().st_size} set()\n", done.stderr


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (None, True),
        (b"no image", True),
        (save(drawing(SMALL), "PNG"), True),
        (save(drawing(LARGE), "PNG"), False),
        (memoryview(save(drawing(SMALL), "TIFF")), False),
        ("photo.jpg", False),
        (io.BytesIO(b"a file"), False),
        (drawing(SMALL), False),
    ],
)
def test_what_must_be_read_or_decoded_is_known_beforehand(image: object, expected: bool):
    assert is_at_hand(image, RULES) == expected


def test_a_decompression_bomb_is_refused_unopened():
    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    size = chunk(b"IHDR" + struct.pack(">II", 20_000, 20_000) + b"\x08\x02\0\0\0")
    bomb = b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT")
    with pytest.raises(
        InvalidInput,
        match=r"^image: found 20000 x 20000 pixels in a PNG; accepted: at most 25,000,000 pixels",
    ):
        encode_image(bomb)
