"""Decompression bombs and the like, measured in a process of their own: memory, and no hang."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from PIL import Image, ImageOps

from diptych_serving.preprocessing import InvalidInput, PreprocessingSpec, fit_image, strip_metadata
from tests.helpers.bombs import BOMBS, jpeg_segment
from tests.helpers.hostile_inputs import draw_leaf, encode, exif

HANG_S = 5.0  # the worst takes a tenth of a second on an idle core
MAX_MIB = 64.0
SPEC = PreprocessingSpec(image_size_px=64, max_tokens=8)
ANSWERED = {
    *(name for name in BOMBS if "at the limit" in name or "overlapping" in name),
    "JPEG, one scan, 64 megapixels",
    "JPEG, one scan, 64 megapixels, without its end",
    "JPEG, progressive, 12 megapixels",
    "JPEG, progressive, 12 megapixels, without its end",
    "JPEG of filling between its scans",
    "JPEG, 95 scans of a megapixel",
    "JPEG of filling",
    "PNG of compressed comments",
}


def test_no_bomb_takes_more_than_64_mib_or_hangs() -> None:
    command = [sys.executable, "-m", "bench.bombs", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name for name, *_ in measured} == set(BOMBS)
    for name, _, cpu_s, mib, outcome in measured:
        assert mib <= MAX_MIB, (name, mib)
        assert cpu_s < HANG_S, (name, cpu_s)
        assert (outcome == "answered") == (name in ANSWERED), (name, outcome)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(format: str, orientation: int) -> None:
    leaf = draw_leaf().resize((64, 40))
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    data = encode(leaf, format, exif=exif(orientation), **options)
    assert strip_metadata(data).orientation == orientation
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    spec = PreprocessingSpec(image_size_px=64, max_tokens=8)
    assert fit_image(data, spec).tobytes() == fit_image(encode(expected), spec).tobytes()


def test_a_picture_without_its_metadata_has_the_same_pixels() -> None:
    for mode, format in [
        ("CMYK", "JPEG"),
        ("L", "JPEG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGBA", "WEBP"),
        ("P", "GIF"),
        ("1", "BMP"),
    ]:
        data = encode(draw_leaf().convert("RGB").convert(mode), format)
        bare = strip_metadata(data)
        found, expected = (Image.open(io.BytesIO(each)) for each in (bare.data, data))
        assert found.mode == expected.mode
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("factors", "samples", "scanned"),
    [({"subsampling": 0}, 3.0, 14.0), ({"subsampling": 1}, 2.0, 10.0), ({"subsampling": 2}, 1.5, 8.0)],
)
def test_what_a_progressive_jpeg_will_cost_is_read_from_its_headers(
    factors: dict[str, int], samples: float, scanned: float
) -> None:
    bare = strip_metadata(encode(draw_leaf(), "JPEG", progressive=True, **factors))
    assert bare.samples_per_pixel == samples
    assert bare.scanned_samples_per_pixel == scanned
    assert bare.num_scans > 5
    assert strip_metadata(encode(draw_leaf(), "JPEG", **factors)).num_scans == 1


def test_scans_in_a_thumbnail_or_a_second_picture_do_not_count() -> None:
    photo = encode(draw_leaf(), "JPEG")
    thumbnail = jpeg_segment(0xE1, b"Exif\0\0" + encode(draw_leaf(), "JPEG", progressive=True))
    bare = strip_metadata(photo[:2] + thumbnail + photo[2:] + photo)
    assert bare.num_scans == 1
    assert thumbnail not in bare.data


def test_a_jpeg_that_is_neither_baseline_nor_progressive_is_refused() -> None:
    arithmetic = encode(draw_leaf(), "JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1)
    with pytest.raises(InvalidInput, match="neither baseline nor progressive"):
        fit_image(arithmetic, SPEC)
