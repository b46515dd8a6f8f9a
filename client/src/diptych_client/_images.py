"""Converts any image to a file that the server accepts. The only module that uses Pillow."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from PIL import Image

from diptych_client._errors import InvalidInput
from diptych_client._image_files import NEVER_DECODED, Header, bare, orientation_of

if TYPE_CHECKING:
    from diptych_client._limits import Limits

ACCEPTED_IMAGE = "a whole JPEG, PNG, WebP, GIF, BMP, AVIF, HEIC or TIFF file"

# Models use a few hundred pixels a side. On a photo of 12 megapixels, scaling changed the pixels of a 224 x
# 224 model by 0.2 grey levels on average, as did a JPEG of all 12 megapixels.
_LONGEST_SIDE_PX = 2048
# A larger PNG would take a second and 25 MB.
_MAX_LOSSLESS_PIXELS = 2**22
# Modes that PNG stores unchanged.
_PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
# 3 megapixels of photograph: level 1 takes 276 ms for 5.4 MB, the default level 6 takes 689 ms for 4.8 MB.
_PNG_COMPRESS_LEVEL = 1
# No visible loss; most training images were compressed like this too.
_JPEG_QUALITY = 95
_JPEG_QUALITY_SHRUNK = 90

# Of a progressive JPEG: a second of decoding.
_MAX_CONVERTED_SAMPLES = 1_000_000_000
_HOW_TO_READ = {"AVIF": "pillow 11.3 or later", "HEIC": "pillow-heif (pip install 'diptych-client[heic]')"}
_PILLOWS_NAMES = {"HEIC": "HEIF"}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def convert(data: bytes, header: Header, limits: Limits, shrink_to_px: int | None) -> bytes:
    """A file that must be converted, in a form that the server accepts.

    Raises InvalidInput for too many pixels, and for a file that cannot be read.
    """
    if header.is_taken(limits):
        return _shrunk(data, header, shrink_to_px or 0)
    if header.format == NEVER_DECODED:
        raise _too_many(header, limits)
    return _converted(data, header, limits, shrink_to_px)


def encode(picture: Image.Image, limits: Limits, shrink_to_px: int | None) -> bytes:
    """An image in memory: PNG, which keeps every pixel, up to 4 megapixels; larger ones scaled down to 2048
    pixels, as JPEG if they are opaque. Raises InvalidInput."""
    if not picture.width or not picture.height:
        raise InvalidInput.refusing("image", f"{picture.width} x {picture.height} pixels", "at least 1 x 1")
    if picture.mode == "F" or (picture.mode == "I" and picture.format is None):
        # White may be 1, 255 or 65,535. A file of mode I has 16 bits.
        found = f"a PIL image of mode {picture.mode}, whose white is unknown"
        raise InvalidInput.refusing("image", found, "any other mode, such as L, I;16 or RGB")
    is_undecoded = bool(getattr(picture, "tile", None))
    if is_undecoded and picture.width * picture.height > limits.max_jpeg_pixels:
        found = f"{picture.width} x {picture.height} pixels, not yet decoded"
        raise InvalidInput.refusing("image", found, f"at most {limits.max_jpeg_pixels:,} pixels")
    try:
        return _encode(picture, limits, shrink_to_px)
    except Exception as error:  # a PIL image decodes when first used, and the decoders raise almost anything
        found = f"a PIL image that cannot be read ({error})"
        raise InvalidInput.refusing("image", found, "a whole image") from None


def _shrunk(data: bytes, header: Header, to_px: int) -> bytes:
    """A file that the server accepts, scaled down for the caller; unchanged if that fails."""
    try:
        picture = _open(data, header.format)
        picture.draft("RGB", (2 * to_px, 2 * to_px))  # JPEGs can be decoded at a fraction
        return min(_encode_scaled(picture, to_px, 2**62, _JPEG_QUALITY_SHRUNK), data, key=len)
    except Exception:  # Pillow's decoders raise almost anything on damaged files
        return data


def _converted(data: bytes, header: Header, limits: Limits, shrink_to_px: int | None) -> bytes:
    """Convert a file that the server does not accept."""
    is_small = (
        header.pixels <= limits.max_converted_pixels and header.scanned_samples <= _MAX_CONVERTED_SAMPLES
    )
    if not is_small:
        raise _too_many(header, limits)
    if not limits.max_converted_pixels:
        return data
    try:
        picture = _open(data, header.format)
        if picture.width * picture.height <= limits.max_converted_pixels:
            return _encode(picture, limits, shrink_to_px)
    except InvalidInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        found, accepted = "far too many pixels", f"at most {limits.max_converted_pixels:,} pixels"
        raise InvalidInput.refusing("image", found, accepted) from None
    except Exception as error:
        found = f"a damaged {header.format} file ({error})"
        raise InvalidInput.refusing("image", found, ACCEPTED_IMAGE) from None
    raise _too_many(Header(header.format, *picture.size), limits)


def _encode(picture: Image.Image, limits: Limits, shrink_to_px: int | None) -> bytes:
    pixels = picture.width * picture.height
    if shrink_to_px is not None and max(picture.size) > shrink_to_px:
        return _encode_scaled(picture, shrink_to_px, limits.max_png_pixels, _JPEG_QUALITY_SHRUNK)
    if pixels <= min(_MAX_LOSSLESS_PIXELS, limits.max_png_pixels):
        whole = _png(_upright(_plain(picture)))
        if len(whole) <= limits.max_image_bytes:
            return whole
    return _encode_scaled(picture, _LONGEST_SIDE_PX, limits.max_png_pixels, _JPEG_QUALITY)


def _encode_scaled(picture: Image.Image, longest_px: int, max_pixels: int, quality: int) -> bytes:
    """Upright, scaled down to a longest side and a number of pixels; JPEG if it is opaque and 8-bit."""
    whole = _upright(_plain(picture))
    scale = min(1.0, longest_px / max(whole.size), math.sqrt(max_pixels / (whole.width * whole.height)))
    size = max(1, int(whole.width * scale)), max(1, int(whole.height * scale))
    if whole.mode.startswith("I"):
        return _png(whole.resize(size, Image.Resampling.BICUBIC))
    mode = "RGBA" if whole.has_transparency_data else "L" if whole.mode in ("1", "L") else "RGB"
    small = whole.convert(mode).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if mode == "RGBA":
        return _png(small)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _plain(picture: Image.Image) -> Image.Image:
    """In a mode that PNG has; transparency is kept."""
    if picture.mode in _PNG_MODES:
        return picture
    if picture.mode.startswith("I"):
        import numpy as np

        return Image.fromarray(np.clip(np.asarray(picture), 0, 2**16 - 1).astype(np.uint16))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    return (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=_PNG_COMPRESS_LEVEL)
    return buffer.getvalue()


def _open(data: bytes, kind: str) -> Image.Image:
    """The first image of a file, not yet decoded, with its orientation in `info`."""
    name = _PILLOWS_NAMES.get(kind, kind)
    if kind == "HEIC":
        try:
            import pillow_heif  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            pass
        else:
            pillow_heif.register_heif_opener()
    Image.init()
    if name not in Image.OPEN:
        found = f"a file of the format {kind}, which cannot be read here"
        accepted = f"JPEG, PNG, WebP, GIF, BMP; or install {_HOW_TO_READ[kind]}"
        raise InvalidInput.refusing("image", found, accepted)
    data, orientation = bare(data, kind)
    picture = Image.open(io.BytesIO(data), formats=[name])
    if orientation != 1:
        picture.info["diptych_orientation"] = orientation
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as EXIF says. Not by `ImageOps.exif_transpose`, which reads all of EXIF."""
    orientation = picture.info.get("diptych_orientation") or orientation_of(picture.info.get("exif") or b"")
    turn = _TURNS.get(orientation)
    if turn is None:
        return picture
    upright = picture.transpose(turn)
    upright.info.pop("exif", None)
    return upright


def _too_many(header: Header, limits: Limits) -> InvalidInput:
    found = f"{header.width} x {header.height} pixels in a {header.format}"
    if header.scanned_samples > _MAX_CONVERTED_SAMPLES:
        return InvalidInput.refusing("image", f"{found} of very many scans", "a baseline JPEG")
    most = limits.max_pixels(header.format)
    if header.format != NEVER_DECODED:
        most = max(most, limits.max_converted_pixels)
    return InvalidInput.refusing("image", found, f"at most {most:,} pixels in a {header.format}")
