"""Turns whatever a caller holds into the two byte strings that a request carries.

Files and arrays become an encoded image; what is encoded already is not decoded here. Pillow
and numpy are imported only for callers who pass their objects.
"""

from __future__ import annotations

import io
import os
import re
import sys
from typing import IO, TYPE_CHECKING, Any, Optional, Union

from diptych_client.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    ImageInput = Union[
        str, os.PathLike[str], bytes, bytearray, memoryview, IO[bytes], Image, NDArray[np.uint8], None
    ]

ACCEPTED_IMAGE = "a path, bytes, a binary file object, a PIL image, an (H, W, 3) uint8 array, or None"
ACCEPTED_FILE = "an encoded image file, or None for no image"
# Fetching what strangers name would let them reach this host's private network (server-side request forgery).
ACCEPTED_FOR_URL = "a path or bytes: URLs are never fetched, so fetch it first if you trust it"

_URL = re.compile(r"(data:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)

# What PNG stores as it is; other modes (CMYK, YCbCr, floats, ...) become RGB.
_PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
# 3 megapixels of photograph: level 1 takes 276 ms for 5.4 MB, the default level 6 takes 689 ms for 4.8 MB.
_PNG_COMPRESS_LEVEL = 1


def encode_item(image: ImageInput, text: Optional[str]) -> tuple[bytes, bytes]:
    """One item as (image file, UTF-8 text); empty where absent. Raises InvalidInput."""
    encoded_image, encoded_text = encode_image(image), encode_text(text)
    if not encoded_image and not encoded_text.strip():
        raise InvalidInput.found("image and text", "both empty", "an image, a text, or both")
    return encoded_image, encoded_text


def encode_text(text: Optional[str]) -> bytes:
    if text is None:
        return b""
    if not isinstance(text, str):
        raise InvalidInput.found("text", _describe(text), "str, or None for no text")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"a lone surrogate U+{ord(text[error.start]):04X} at offset {error.start}"
        raise InvalidInput.found("text", found, "text that UTF-8 can hold") from None


def encode_image(image: ImageInput) -> bytes:
    """An encoded image file; empty for None alone, so that a mishap does not pass for a missing image."""
    if image is None:
        return b""
    held: Any = image  # the type checker cannot follow checks that do without the imports
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _not_empty(bytes(image), "0 bytes")
    if isinstance(image, (str, os.PathLike)):
        return _read_path(os.fsdecode(image))
    if hasattr(image, "read"):
        return _read_file(held)
    if _is_a(image, "PIL.Image", "Image"):
        return _encode_pil(held)
    if _is_a(image, "numpy", "ndarray"):
        return _encode_array(held)
    raise InvalidInput.found("image", _describe(image), ACCEPTED_IMAGE)


def _read_path(path: str) -> bytes:
    if _URL.match(path):
        raise InvalidInput.found("image", f"the URL {path[:80]!r}", ACCEPTED_FOR_URL)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise InvalidInput.found("image", f"{path[:200]!r} ({reason})", "a readable file") from None
    return _not_empty(data, f"{path!r}, an empty file")


def _read_file(file: IO[bytes]) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise InvalidInput.found("image", f"a file object that reads {_describe(data)}", "binary mode")
    return _not_empty(data, "a file object at its end")


def _encode_pil(image: Image) -> bytes:
    """PNG, which keeps every pixel. Upright first: PNG would lose the rotation that EXIF asks for."""
    from PIL import ImageOps

    if not image.width or not image.height:
        raise InvalidInput.found("image", f"{image.width} x {image.height} pixels", "at least 1 x 1")
    buffer = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        kept = upright if upright.mode in _PNG_MODES else upright.convert("RGB")
        kept.save(buffer, "PNG", compress_level=_PNG_COMPRESS_LEVEL)
    except Exception as error:  # a PIL image decodes when first used, and the decoders raise almost anything
        found = f"a PIL image that cannot be read ({error})"
        raise InvalidInput.found("image", found, "a whole image") from None
    return buffer.getvalue()


def _encode_array(array: NDArray[np.uint8]) -> bytes:
    if array.dtype != "uint8" or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        found = f"an array of shape {array.shape} and dtype {array.dtype}"
        raise InvalidInput.found("image", found, "shape (H, W, 3) and dtype uint8, RGB")
    from PIL import Image

    return _encode_pil(Image.fromarray(array))


def _not_empty(data: bytes, found: str) -> bytes:
    if not data:
        raise InvalidInput.found("image", found, ACCEPTED_FILE)
    return data


def _is_a(value: object, module: str, name: str) -> bool:
    """isinstance without the import: whoever holds a PIL image has imported Pillow."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def _describe(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
