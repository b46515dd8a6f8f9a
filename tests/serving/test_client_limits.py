"""The client's copy of the server's limits, field by field; what it sends for an image, the server takes."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

import diptych_client
from diptych_client._image_files import read_header
from diptych_client._inputs import encode_image
from diptych_serving.preprocessing import SIGNATURES, Limits, PreprocessingSpec, fit_image

SPEC = PreprocessingSpec(image_size_px=64, max_tokens=8)


def test_the_client_has_every_limit_of_the_server_with_its_default() -> None:
    ours = dataclasses.asdict(diptych_client.Limits())
    assert ours.pop("max_converted_pixels") > 0  # what the client may decode is the client's own
    assert ours == dataclasses.asdict(Limits())


@pytest.mark.parametrize("format", sorted(SIGNATURES))
def test_both_call_a_format_by_the_same_name(format: str) -> None:
    assert diptych_client.Limits().max_pixels(format) == Limits().max_pixels(format)


def drawing(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(drawing(4000, 3000), id="photo of 12 megapixels"),
        pytest.param(np.asarray(drawing(2100, 2000)), id="array"),
        pytest.param(drawing(2100, 2000).convert("RGBA"), id="transparent"),
        pytest.param(drawing(2100, 2000).convert("P"), id="palette"),
        pytest.param(Image.new("I;16", (2100, 2000), 40_000), id="16 bits"),
        pytest.param(save(drawing(4000, 3100), "PNG"), id="PNG"),
        pytest.param(save(drawing(2100, 2000), "WEBP"), id="WebP"),
        pytest.param(save(drawing(2100, 2000).convert("P"), "BMP"), id="BMP"),
        pytest.param(save(drawing(4000, 3200), "JPEG", progressive=True), id="progressive JPEG"),
        pytest.param(save(drawing(640, 480), "AVIF"), id="AVIF"),
        pytest.param(save(drawing(640, 480), "TIFF"), id="TIFF"),
    ],
)
def test_what_the_client_sends_for_an_image_is_taken_by_the_server(image: object) -> None:
    fit_image(encode_image(image), SPEC)


def test_the_client_counts_a_progressive_jpeg_as_the_server_does() -> None:
    """At the limit the server takes it, above it refuses: so the client must know on which side a file is."""
    data = save(drawing(600, 400), "JPEG", progressive=True)
    header = read_header(data)
    assert header is not None
    for limit in ("max_jpeg_coefficients", "max_jpeg_scanned_samples"):
        count = header.coefficients if limit == "max_jpeg_coefficients" else header.scanned_samples
        fit_image(data, dataclasses.replace(SPEC, **{limit: count}))
        with pytest.raises(ValueError, match="in a progressive JPEG of"):
            fit_image(data, dataclasses.replace(SPEC, **{limit: count - 1}))
