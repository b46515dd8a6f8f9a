"""Looks at images before they are sent, and encodes or shrinks them. Owns Pillow."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from diptych_client._errors import InvalidInput

# What the server reads. Others are passed on as they are, for it to say so.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# What PNG stores as it is; other modes (CMYK, YCbCr, floats, ...) become RGB.
_PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
# 3 megapixels of photograph: level 1 takes 276 ms for 5.4 MB, the default level 6 takes 689 ms for 4.8 MB.
_PNG_COMPRESS_LEVEL = 1
# Of shrunk pictures: no visible loss, and what training's pictures have mostly been through as well.
_JPEG_QUALITY = 90


def check_and_shrink(data: bytes, max_pixels: int, shrink_to_px: int | None) -> bytes:
    """An encoded file, as it is or scaled down. Only its header is read, unless it is to be shrunk.

    What cannot be read goes out untouched: the server is the judge of it, and says what it found.
    Raises InvalidInput for too many pixels.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        if max_pixels > (Image.MAX_IMAGE_PIXELS or max_pixels):  # the caller allows more than Pillow does
            return data
        raise _too_many("far too many pixels", max_pixels) from None
    except Exception:  # Pillow's decoders raise almost anything on damaged files
        return data
    _check_pixels(picture, max_pixels)
    if shrink_to_px is None or max(picture.size) <= shrink_to_px:
        return data
    try:
        picture.draft("RGB", (2 * shrink_to_px, 2 * shrink_to_px))  # JPEGs can be decoded at a fraction
        shrunk = _shrink(picture, shrink_to_px)
    except Exception:  # as above
        return data
    return min(shrunk, data, key=len)


def encode(picture: Image.Image, max_pixels: int, shrink_to_px: int | None) -> bytes:
    """An image in memory as PNG, which keeps every pixel, or scaled down. Raises InvalidInput."""
    if not picture.width or not picture.height:
        raise InvalidInput.refusing("image", f"{picture.width} x {picture.height} pixels", "at least 1 x 1")
    _check_pixels(picture, max_pixels)
    try:
        if shrink_to_px is not None and max(picture.size) > shrink_to_px:
            return _shrink(picture, shrink_to_px)
        upright = ImageOps.exif_transpose(picture)  # PNG would lose the rotation that EXIF asks for
        return _png(upright if upright.mode in _PNG_MODES else upright.convert("RGB"))
    except Exception as error:  # a PIL image decodes when first used, and the decoders raise almost anything
        found = f"a PIL image that cannot be read ({error})"
        raise InvalidInput.refusing("image", found, "a whole image") from None


def _shrink(picture: Image.Image, to_px: int) -> bytes:
    """Upright, the longest side as given; JPEG where it is opaque, else PNG."""
    is_opaque = not picture.has_transparency_data
    if picture.mode.startswith("I"):  # 16-bit grey: Pillow's conversion to RGB clips at 255
        return _png(ImageOps.contain(ImageOps.exif_transpose(picture), (to_px, to_px)))
    whole = ImageOps.exif_transpose(picture).convert("RGB" if is_opaque else "RGBA")
    small = ImageOps.contain(whole, (to_px, to_px), Image.Resampling.BICUBIC)
    if not is_opaque:
        return _png(small)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=_PNG_COMPRESS_LEVEL)
    return buffer.getvalue()


def _check_pixels(picture: Image.Image, max_pixels: int) -> None:
    if picture.width * picture.height > max_pixels:
        raise _too_many(f"{picture.width} x {picture.height} pixels", max_pixels)


def _too_many(found: str, max_pixels: int) -> InvalidInput:
    return InvalidInput.refusing("image", found, f"at most {max_pixels:,} pixels")
