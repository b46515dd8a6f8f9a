"""Turns a caller's image and text into the two byte strings of a request.

Files and arrays become an encoded image. An encoded image that the server accepts stays unchanged. Pillow and
numpy are imported only if an image must be decoded or encoded.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Protocol, TypedDict

from diptych_client._errors import InvalidInput
from diptych_client._image_files import needs_decoding
from diptych_client._limits import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


class Pixels(Protocol):
    """A PIL image or a numpy array, named without importing either."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Pixels | None


class Item(TypedDict, total=False):
    """An item of `classify_many`: either key may be missing; other keys are ignored."""

    image: ImageInput
    text: str | None


ACCEPTED_IMAGE = "a path, bytes, a binary file object, a PIL image, an (H, W, 3) uint8 array, or None"
ACCEPTED_FILE = "an encoded image file, or None for no image"
# Fetching strangers' URLs would let them reach this host's private network (server-side request forgery).
ACCEPTED_FOR_URL = "a path or bytes: URLs are never fetched, unless the client has a `fetch` that you trust"

READ_AT_ONCE_BYTES = 2**20

_URL = re.compile(r"(data:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)

Fetch = Callable[[str], bytes]


@dataclasses.dataclass(frozen=True)
class InputRules:
    """How a client treats its callers' items.

    shrink_to_px  longest side of sent images; larger ones are scaled down. None: unchanged
    fetch         a function from a URL to bytes; None: URLs are refused
    """

    limits: Limits = dataclasses.field(default_factory=Limits)
    shrink_to_px: int | None = None
    fetch: Fetch | None = None

    def __post_init__(self) -> None:
        is_size = isinstance(self.shrink_to_px, int) and self.shrink_to_px >= 1
        if self.shrink_to_px is not None and not is_size:
            raise InvalidInput.refusing("shrink_to_px", repr(self.shrink_to_px), "1 or more, or None")


_DEFAULT_RULES = InputRules()


def encode_item(
    image: ImageInput, text: str | None, rules: InputRules = _DEFAULT_RULES
) -> tuple[bytes, bytes]:
    """One item as (image file, UTF-8 text); empty if absent. Raises InvalidInput."""
    encoded_image, encoded_text = encode_image(image, rules), encode_text(text, rules)
    if not encoded_image and not encoded_text.strip():
        raise InvalidInput.refusing("image and text", "both empty", "an image, a text, or both")
    return encoded_image, encoded_text


def encode_text(text: str | None, rules: InputRules = _DEFAULT_RULES) -> bytes:
    if text is None:
        return b""
    if not isinstance(text, str):
        raise InvalidInput.refusing("text", _describe(text), "str, or None for no text")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"a lone surrogate U+{ord(text[error.start]):04X} at offset {error.start}"
        raise InvalidInput.refusing("text", found, "text that UTF-8 can hold") from None
    limit = rules.limits.max_text_bytes
    if len(encoded) > limit:
        raise InvalidInput.refusing("text", f"{len(encoded):,} bytes", f"at most {limit:,} bytes of UTF-8")
    return encoded


def encode_image(image: ImageInput, rules: InputRules = _DEFAULT_RULES) -> bytes:
    """An encoded image file; empty only for None, so that an empty file does not count as a missing image."""
    if image is None:
        return b""
    held: Any = image  # the type checker cannot follow checks without the imports
    if _is_a(image, "PIL.Image", "Image"):
        return _checked_size(_from_pixels(held, rules), rules.limits)
    if _is_a(image, "numpy", "ndarray"):
        return _checked_size(_from_pixels(_picture_of(held), rules), rules.limits)
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = _not_empty(bytes(image), "0 bytes")
    elif isinstance(image, (str, os.PathLike)):
        data = _read_named(os.fsdecode(image), rules)
    elif hasattr(image, "read"):
        data = _read_file(held, rules.limits)
    else:
        raise InvalidInput.refusing("image", _describe(image), ACCEPTED_IMAGE)
    _checked_size(data, rules.limits)
    header = needs_decoding(data, rules.limits, rules.shrink_to_px)
    if header is None:
        return data
    from diptych_client import _images

    return _checked_size(_images.convert(data, header, rules.limits, rules.shrink_to_px), rules.limits)


def is_at_hand(image: ImageInput, rules: InputRules) -> bool:
    """Whether an image becomes bytes without disk, network or decoding."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return needs_decoding(bytes(image), rules.limits, rules.shrink_to_px) is None
    return image is None


def _read_named(name: str, rules: InputRules) -> bytes:
    if not _URL.match(name):
        return _read_path(name, rules.limits)
    if rules.fetch is None:
        raise InvalidInput.refusing("image", f"the URL {name[:80]!r}", ACCEPTED_FOR_URL)
    fetched = rules.fetch(name)
    if not isinstance(fetched, bytes):
        raise InvalidInput.refusing("image", f"a `fetch` that returns {_describe(fetched)}", "bytes")
    return _not_empty(fetched, f"0 bytes behind {name[:80]!r}")


def _read_path(path: str, limits: Limits) -> bytes:
    try:
        with open(path, "rb") as file:
            data = _read_to_end(file, limits)
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        found = f"{path[:200]!r} ({_reason_of(error)})"
        raise InvalidInput.refusing("image", found, "a readable file") from error
    if len(data) > limits.max_image_bytes:
        raise _too_large(f"{path[:200]!r} of {size:,} bytes", limits)
    return _not_empty(data, f"{path!r}, an empty file")


def _read_file(file: IO[bytes], limits: Limits) -> bytes:
    try:
        data = _read_to_end(file, limits)
    except _NotBytes as error:
        accepted = "a file object in binary mode that waits for its data"
        raise InvalidInput.refusing("image", f"a file object that reads {error}", accepted) from None
    except (OSError, ValueError) as error:  # ValueError: a closed file
        found = f"a file object that cannot be read ({_reason_of(error)})"
        raise InvalidInput.refusing("image", found, "a readable file object") from error
    if len(data) > limits.max_image_bytes:
        raise _too_large(f"a file object with more than {limits.max_image_bytes:,} bytes", limits)
    return _not_empty(data, "a file object at its end")


class _NotBytes(Exception):
    """What a file object reads instead of bytes: text, or None if it is non-blocking."""


def _read_to_end(file: IO[bytes], limits: Limits) -> bytes:
    """All of a file, or one byte more than is allowed. A raw pipe may return less, so read repeatedly."""
    parts: list[bytes] = []
    left = limits.max_image_bytes + 1
    while left > 0:
        part = file.read(min(left, READ_AT_ONCE_BYTES))
        if not isinstance(part, bytes):
            raise _NotBytes(_describe(part))
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _reason_of(error: Exception) -> object:
    return (isinstance(error, OSError) and error.strerror) or error


def _from_pixels(picture: Image, rules: InputRules) -> bytes:
    from diptych_client import _images

    return _images.encode(picture, rules.limits, rules.shrink_to_px)


def _picture_of(array: NDArray[np.uint8]) -> Image:
    if array.dtype != "uint8" or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        found = f"an array of shape {array.shape} and dtype {array.dtype}"
        raise InvalidInput.refusing("image", found, "shape (H, W, 3) and dtype uint8, RGB")
    from PIL import Image

    return Image.fromarray(array)


def _checked_size(data: bytes, limits: Limits) -> bytes:
    if len(data) > limits.max_image_bytes:
        raise _too_large(f"{len(data):,} bytes", limits)
    return data


def _too_large(found: str, limits: Limits) -> InvalidInput:
    return InvalidInput.refusing("image", found, f"at most {limits.max_image_bytes:,} bytes")


def _not_empty(data: bytes, found: str) -> bytes:
    if not data:
        raise InvalidInput.refusing("image", found, ACCEPTED_FILE)
    return data


def _is_a(value: object, module: str, name: str) -> bool:
    """isinstance without the import: a caller with a PIL image has imported Pillow."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def _describe(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
