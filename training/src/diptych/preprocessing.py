"""Turns one item's raw bytes into what the encoders read: pixels and tokens.

Training evaluates through this module and the server runs a snapshot of this very file, so the two
cannot drift. It may import numpy, pillow and tokenizers, and nothing else: no torch, no Triton, no Diptych.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tokenizers import Tokenizer

SPEC_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"

# Formats that strangers may send. TIFF, PSD and the like are left out: large decoders, few products.
# Phones' multi-picture JPEGs (MPO) are read by the JPEG decoder.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
ACCEPTED_IMAGE = "a whole JPEG, PNG, WebP, GIF or BMP file"
WHITE = (255, 255, 255)

# Pillow only warns about bombs up to twice its own limit; ours is lower, so its warning is a refusal too.
warnings.simplefilter("error", Image.DecompressionBombWarning)


# Why an item is refused, for metrics: a closed list, none of it the caller's words.
REASONS = (
    EMPTY,
    IMAGE_BYTES,
    IMAGE_PIXELS,
    IMAGE_FORMAT,
    IMAGE_DAMAGED,
    TEXT_BYTES,
    TEXT_NOT_UTF8,
) = (
    "empty",
    "image_too_many_bytes",
    "image_too_many_pixels",
    "image_unknown_format",
    "image_damaged",
    "text_too_many_bytes",
    "text_not_utf8",
)


class InvalidInput(ValueError):
    """An item that cannot be answered.

    field   'image', 'text' or 'image and text'
    reason  one of REASONS
    """

    def __init__(self, field: str, found: str, accepted: str, reason: str) -> None:
        super().__init__(f"preprocess: {field}: found {found}; accepted: {accepted}")
        self.field = field
        self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessingSpec:
    """Everything that decides how an item becomes tensors. Saved beside the weights that it belongs to."""

    image_size_px: int
    max_tokens: int
    max_image_bytes: int = 20 * 2**20
    max_image_pixels: int = 64_000_000
    max_text_bytes: int = 64 * 2**10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One item, ready for the encoders.

    pixel_values    (3, H, W) uint8; zeros where the image is absent
    image_present   bool
    input_ids       (L,) int64
    attention_mask  (L,) int64; 1 real token, 0 padding; all zeros where the text is absent
    """

    pixel_values: NDArray[np.uint8]
    image_present: bool
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Many items in one buffer for each tensor; rows that are refused hold anything.

    pixel_values    (B, 3, H, W) uint8
    image_present   (B, 1) bool
    input_ids       (B, L) int64
    attention_mask  (B, L) int64
    decoded_pixels  (B,) int64; what the decoder gave, before it was fitted into the square
    errors          by row, why it is refused
    """

    pixel_values: NDArray[np.uint8]
    image_present: NDArray[np.bool_]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    decoded_pixels: NDArray[np.int64]
    errors: dict[int, InvalidInput]

    def row(self, index: int) -> Row | InvalidInput:
        """A view of one row, or its error."""
        if index in self.errors:
            return self.errors[index]
        return Row(
            pixel_values=self.pixel_values[index],
            image_present=bool(self.image_present[index, 0]),
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
        )


class Preprocessor:
    """Pixels and tokens for one trained model. Safe to share between threads."""

    def __init__(self, spec: PreprocessingSpec, tokenizer_json: str) -> None:
        self.spec = spec
        self.tokenizer_json = tokenizer_json
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.enable_truncation(max_length=spec.max_tokens)
        self._tokenizer.no_padding()  # `tokens` pads: on the right, whatever the tokenizer's authors did
        self._pad_id = _pad_id_of(tokenizer_json)
        self._num_special_tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False)

    @classmethod
    def load(cls, directory: Path) -> Preprocessor:
        """Read what `save` wrote."""
        spec = PreprocessingSpec(**json.loads((directory / SPEC_FILE).read_text("utf-8")))
        return cls(spec, (directory / TOKENIZER_FILE).read_text("utf-8"))

    def save(self, directory: Path) -> None:
        """Write the spec and the tokenizer into an existing directory."""
        (directory / SPEC_FILE).write_text(
            json.dumps(dataclasses.asdict(self.spec), indent=2) + "\n", "utf-8"
        )
        (directory / TOKENIZER_FILE).write_text(self.tokenizer_json, "utf-8")

    def rows(self, items: Sequence[tuple[bytes, bytes]]) -> list[Row | InvalidInput]:
        """Preprocess many (image file, UTF-8 text) pairs; a bad one yields its error in its place."""
        batch = self.batch(items)
        return [batch.row(index) for index in range(len(items))]

    def batch(self, items: Sequence[tuple[bytes, bytes]]) -> Batch:
        """The same, in buffers that are written once."""
        size_px = self.spec.image_size_px
        pixel_values = np.zeros((len(items), 3, size_px, size_px), np.uint8)
        image_present = np.zeros((len(items), 1), np.bool_)
        decoded_pixels = np.zeros(len(items), np.int64)
        texts = [""] * len(items)
        errors: dict[int, InvalidInput] = {}
        for index, (image, text) in enumerate(items):
            try:
                if image:
                    decoded = decode_image(image, self.spec)
                    decoded_pixels[index] = decoded.width * decoded.height
                    pixel_values[index] = self._square(decoded).transpose(2, 0, 1)
                    image_present[index] = True
                texts[index] = self.text(text)
            except InvalidInput as error:
                errors[index] = error
        input_ids, attention_mask = self.tokens(texts)
        for index in np.flatnonzero(~image_present[:, 0] & ~attention_mask.any(axis=1)).tolist():
            nothing = InvalidInput("image and text", "both empty", "an image file, a text, or both", EMPTY)
            errors.setdefault(index, nothing)
        return Batch(
            pixel_values=pixel_values,
            image_present=image_present,
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoded_pixels=decoded_pixels,
            errors=errors,
        )

    def pixels(self, data: bytes) -> NDArray[np.uint8] | None:
        """Decode, turn upright, fit into a white square.

        data     one encoded image file; empty: no image
        returns  (3, H, W) uint8 RGB, or None where there is no image
        raises   InvalidInput
        """
        if not data:
            return None
        return np.ascontiguousarray(self._square(decode_image(data, self.spec)).transpose(2, 0, 1))

    def _square(self, image: Image.Image) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB"""
        return np.asarray(fit_on_white(image, self.spec.image_size_px))

    def text(self, data: bytes) -> str:
        """Decode UTF-8; empty or blank: no text. Raises InvalidInput."""
        limit = self.spec.max_text_bytes
        if len(data) > limit:
            raise InvalidInput(
                "text", f"{len(data):,} bytes", f"at most {limit:,} bytes of UTF-8", TEXT_BYTES
            )
        try:
            return data.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            found = f"byte 0x{data[error.start]:02x} at offset {error.start}, which is not UTF-8"
            raise InvalidInput("text", found, "UTF-8", TEXT_NOT_UTF8) from None

    def tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokenise to one fixed length, so that all requests have one shape and batch together.

        returns  input_ids (B, L) int64, attention_mask (B, L) int64; a text without a single token
                 of its own (empty, blank) has a mask of zeros
        """
        input_ids = np.full((len(texts), self.spec.max_tokens), self._pad_id, np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, encoding in enumerate(self._tokenizer.encode_batch_fast(list(texts))):
            ids = encoding.ids
            input_ids[row, : len(ids)] = ids
            if len(ids) > self._num_special_tokens:
                attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask


def decode_image(data: bytes, spec: PreprocessingSpec) -> Image.Image:
    """Decode one image file to RGB or RGBA, upright. Raises InvalidInput.

    JPEGs are decoded at a reduced scale, never below twice what is left of them in the square: cheaper, and
    the final resize still averages over real pixels. At once the size instead of twice, a 3000 x 500 picture
    moved by 3.7 grey levels on average; at twice by 0.2.
    """
    if len(data) > spec.max_image_bytes:
        accepted = f"at most {spec.max_image_bytes:,} bytes"
        raise InvalidInput("image", f"{len(data):,} bytes", accepted, IMAGE_BYTES)
    accepted_size = f"at most {spec.max_image_pixels:,} pixels"
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height > spec.max_image_pixels:
            found = f"{image.width} x {image.height} pixels"
            raise InvalidInput("image", found, accepted_size, IMAGE_PIXELS)
        width, height = _fitted_size(image, spec.image_size_px)
        image.draft("RGB", (2 * width, 2 * height))
        image.load()
        return _to_rgb_or_rgba(_upright(image))
    except InvalidInput:
        raise
    except Image.UnidentifiedImageError:
        found = f"{len(data):,} bytes in no known format"
        raise InvalidInput("image", found, ACCEPTED_IMAGE, IMAGE_FORMAT) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        count = re.search(r"(\d+) pixels", str(error))
        found = f"{int(count[1]):,} pixels" if count else "far too many pixels"
        raise InvalidInput("image", found, accepted_size, IMAGE_PIXELS) from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise InvalidInput("image", f"a damaged file ({error})", ACCEPTED_IMAGE, IMAGE_DAMAGED) from None


def fit_on_white(image: Image.Image, size_px: int) -> Image.Image:
    """Scale to fit a white square, centred, nothing cropped. Transparency becomes white, not black."""
    width, height = _fitted_size(image, size_px)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    canvas = Image.new("RGB", (size_px, size_px), WHITE)
    corner = ((size_px - width) // 2, (size_px - height) // 2)
    canvas.paste(resized, corner, mask=resized if resized.mode == "RGBA" else None)
    return canvas


def _fitted_size(image: Image.Image, size_px: int) -> tuple[int, int]:
    """Width and height of the whole picture in a square of this size."""
    scale = size_px / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _upright(image: Image.Image) -> Image.Image:
    """Turn it as EXIF says, in place. Damaged EXIF is no reason to refuse: the pixels are whole."""
    with contextlib.suppress(Exception):  # as with the decoders, almost anything
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb_or_rgba(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _pad_id_of(tokenizer_json: str) -> int:
    """The padding token that the tokenizer's authors chose; BERT's, 0, where they chose none."""
    padding = json.loads(tokenizer_json).get("padding")
    return int(padding["pad_id"]) if padding else 0
