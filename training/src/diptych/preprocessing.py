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


class InvalidInput(ValueError):
    """An item that cannot be answered: `field` is 'image', 'text' or 'image and text'."""

    def __init__(self, field: str, found: str, accepted: str) -> None:
        super().__init__(f"preprocess: {field}: found {found}; accepted: {accepted}")
        self.field = field


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


class Preprocessor:
    """Pixels and tokens for one trained model. Safe to share between threads."""

    def __init__(self, spec: PreprocessingSpec, tokenizer_json: str) -> None:
        self.spec = spec
        self.tokenizer_json = tokenizer_json
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.enable_truncation(max_length=spec.max_tokens)
        # Padding on the right: the text encoder cuts the columns that no row of its batch uses.
        self._tokenizer.enable_padding(
            direction="right", length=spec.max_tokens, **_padding_of(tokenizer_json)
        )

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
        pixels = [_or_error(self.pixels, image) for image, _ in items]
        texts = [_or_error(self.text, text) for _, text in items]
        input_ids, attention_mask = self.tokens(
            [text if isinstance(text, str) else "" for text in texts],
        )
        return [self._row(*parts) for parts in zip(pixels, texts, input_ids, attention_mask, strict=True)]

    def _row(
        self,
        pixels: NDArray[np.uint8] | InvalidInput | None,
        text: str | InvalidInput,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
    ) -> Row | InvalidInput:
        if isinstance(pixels, InvalidInput):
            return pixels
        if isinstance(text, InvalidInput):
            return text
        if pixels is None and not attention_mask.any():
            return InvalidInput("image and text", "both empty", "an image file, a text, or both")
        return Row(
            pixel_values=self._no_pixels() if pixels is None else pixels,
            image_present=pixels is not None,
            input_ids=input_ids,
            attention_mask=attention_mask,
        )

    def _no_pixels(self) -> NDArray[np.uint8]:
        return np.zeros((3, self.spec.image_size_px, self.spec.image_size_px), np.uint8)

    def pixels(self, data: bytes) -> NDArray[np.uint8] | None:
        """Decode, turn upright, fit into a white square.

        data     one encoded image file; empty: no image
        returns  (3, H, W) uint8 RGB, or None where there is no image
        raises   InvalidInput
        """
        if not data:
            return None
        image = decode_image(data, self.spec)
        square = fit_on_white(image, self.spec.image_size_px)
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))

    def text(self, data: bytes) -> str:
        """Decode UTF-8; empty or blank: no text. Raises InvalidInput."""
        limit = self.spec.max_text_bytes
        if len(data) > limit:
            raise InvalidInput("text", f"{len(data):,} bytes", f"at most {limit:,} bytes of UTF-8")
        try:
            return data.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            found = f"byte 0x{data[error.start]:02x} at offset {error.start}, which is not UTF-8"
            raise InvalidInput("text", found, "UTF-8") from None

    def tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokenise to one fixed length, so that all requests have one shape and batch together.

        returns  input_ids (B, L) int64, attention_mask (B, L) int64; a text without a single token
                 of its own (empty, blank) has a mask of zeros
        """
        encodings = self._tokenizer.encode_batch(list(texts))
        input_ids = np.array([encoding.ids for encoding in encodings], np.int64)
        attention_mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        special = np.array([encoding.special_tokens_mask for encoding in encodings], np.int64)
        has_words = (attention_mask * (1 - special)).any(axis=1, keepdims=True)
        return input_ids, attention_mask * has_words


def decode_image(data: bytes, spec: PreprocessingSpec) -> Image.Image:
    """Decode one image file to RGB or RGBA, upright. Raises InvalidInput.

    JPEGs are decoded at a reduced scale, never below twice `image_size_px`: cheaper, and the final resize
    still averages over real pixels.
    """
    if len(data) > spec.max_image_bytes:
        raise InvalidInput("image", f"{len(data):,} bytes", f"at most {spec.max_image_bytes:,} bytes")
    accepted_size = f"at most {spec.max_image_pixels:,} pixels"
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height > spec.max_image_pixels:
            raise InvalidInput("image", f"{image.width} x {image.height} pixels", accepted_size)
        image.draft("RGB", (2 * spec.image_size_px, 2 * spec.image_size_px))
        image.load()
        return _to_rgb_or_rgba(_upright(image))
    except InvalidInput:
        raise
    except Image.UnidentifiedImageError:
        raise InvalidInput("image", f"{len(data):,} bytes in no known format", ACCEPTED_IMAGE) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        count = re.search(r"(\d+) pixels", str(error))
        found = f"{int(count[1]):,} pixels" if count else "far too many pixels"
        raise InvalidInput("image", found, accepted_size) from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise InvalidInput("image", f"a damaged file ({error})", ACCEPTED_IMAGE) from None


def fit_on_white(image: Image.Image, size_px: int) -> Image.Image:
    """Scale to fit a white square, centred, nothing cropped. Transparency becomes white, not black."""
    scale = size_px / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    canvas = Image.new("RGB", (size_px, size_px), WHITE)
    corner = ((size_px - width) // 2, (size_px - height) // 2)
    canvas.paste(resized, corner, mask=resized if resized.mode == "RGBA" else None)
    return canvas


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


def _padding_of(tokenizer_json: str) -> dict[str, str | int]:
    """The padding token that the tokenizer's authors chose; BERT's where they chose none."""
    padding = json.loads(tokenizer_json).get("padding")
    if not padding:
        return {}
    return {key: padding[key] for key in ("pad_id", "pad_token", "pad_type_id")}


def _or_error(step, data: bytes):  # type: ignore[no-untyped-def]
    try:
        return step(data)
    except InvalidInput as error:
        return error
