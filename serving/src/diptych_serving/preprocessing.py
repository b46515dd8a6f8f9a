"""Turns one item's raw bytes into what the encoders read: pixels and tokens.

Training uses this module, and the server runs a snapshot of this file and of image_files.py, so the two
cannot differ. These files may import only numpy, pillow and tokenizers: no torch, no Triton, no Diptych.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

# Relative: a version's directory is not part of the package.
from .image_files import (
    SIGNATURES,
    BareFile,
    UnsupportedImage,
    base64_format_of,
    format_of,
    load_image,
    open_image,
    orientation_of,
    strip_metadata,
)

SPEC_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"
SNAPSHOT = ("image_files.py", "preprocessing.py")  # the files of a version's directory that are code

# How an image comes into its square: whole, with white at its sides; its centre, as high or as wide as the
# square; or whole, with its proportions changed.
Fit = Literal["pad", "crop", "stretch"]
Resample = Literal["bicubic", "bilinear"]
# Of an image that is longer than this many of its widths, 'crop' resizes the middle alone. As a whole, a line
# of 1 x 12,000,000 pixels would become 600 gigapixels.
MAX_CROPPED_RATIO = 8

WHITE = (255, 255, 255)
BAND_PX = 256  # rows that are converted at once
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Why an item is refused, for metrics. The list is closed: no caller's text becomes a label.
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
class Limits:
    """Sizes above which an item is refused before it is decoded. 0 pixels: the format is refused.

    The defaults suit a server that strangers can call: decoding takes at most 64 MiB, and rarely more than a
    tenth of a second (docs/inputs.md). The client has a copy of them.

    max_jpeg_coefficients     a JPEG in many scans keeps all of them in memory, two bytes each
    max_jpeg_scanned_samples  the samples that all scans of such a JPEG visit together. The usual ten scans of
                              a photo visit 8 a pixel: 12 megapixels pass.
    """

    max_image_bytes: int = 20 * 2**20
    max_jpeg_pixels: int = 64_000_000
    max_png_pixels: int = 12_000_000
    max_webp_pixels: int = 2**22
    max_gif_pixels: int = 2**22
    max_bmp_pixels: int = 2**22
    max_tiff_pixels: int = 0
    max_avif_pixels: int = 0
    max_heic_pixels: int = 0
    max_jpeg_coefficients: int = 2**25
    max_jpeg_scanned_samples: int = 100_000_000
    max_text_bytes: int = 64 * 2**10

    def max_pixels(self, format: str) -> int:
        """The limit of a format of SIGNATURES."""
        limit: int = getattr(self, f"max_{format.lower()}_pixels")
        return limit

    @property
    def formats(self) -> list[str]:
        """The accepted formats."""
        return [format for format in SIGNATURES if self.max_pixels(format)]

    @property
    def accepted_image(self) -> str:
        """The accepted formats, as text for messages."""
        *others, last = self.formats
        return f"a whole {', '.join(others)} or {last} file" if others else f"a whole {last} file"


LIMIT_NAMES = tuple(field.name for field in dataclasses.fields(Limits))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessingSpec(Limits):
    """Everything that decides how an item becomes tensors, and what is refused. Saved beside its weights."""

    image_size_px: int
    max_tokens: int
    # What older versions did has to be the default: their files do not name it.
    image_fit: Fit = "pad"
    image_resample: Resample = "bicubic"

    @classmethod
    def from_json(cls, text: str) -> PreprocessingSpec:
        """Read what `Preprocessor.save` wrote. A missing limit has its default."""
        found = json.loads(text)
        return cls(
            **{field.name: found[field.name] for field in dataclasses.fields(cls) if field.name in found}
        )

    def within(self, limits: Limits) -> PreprocessingSpec:
        """The same with these limits."""
        return dataclasses.replace(self, **{name: getattr(limits, name) for name in LIMIT_NAMES})

    def stricter(self, other: Limits) -> PreprocessingSpec:
        """The same with the lower of both values for each limit."""
        lower = {name: min(getattr(self, name), getattr(other, name)) for name in LIMIT_NAMES}
        return dataclasses.replace(self, **lower)


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
    """Many items in one buffer for each tensor. The contents of refused rows are undefined.

    pixel_values    (B, 3, H, W) uint8
    image_present   (B, 1) bool
    input_ids       (B, L) int64
    attention_mask  (B, L) int64
    decoded_pixels  (B,) int64; number of decoded pixels, before the image was fitted into the square
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


def save_snapshot(directory: Path) -> None:
    """Copy this code into a version's directory."""
    for name in SNAPSHOT:
        shutil.copy2(Path(__file__).with_name(name), directory)


class Preprocessor:
    """Pixels and tokens for one trained model. Safe to share between threads."""

    def __init__(self, spec: PreprocessingSpec, tokenizer_json: str) -> None:
        self.spec = spec
        self.tokenizer_json = tokenizer_json
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        # Which end is cut is the authors' choice: the file keeps it.
        side = (self._tokenizer.truncation or {}).get("direction", "right")
        self._tokenizer.enable_truncation(max_length=spec.max_tokens, direction=side)
        self._tokenizer.no_padding()  # `tokens` pads on the right, whatever the tokenizer's own setting
        self._pad_id = _pad_id_of(tokenizer_json)
        self._num_special_tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False)

    @classmethod
    def load(cls, directory: Path) -> Preprocessor:
        """Read what `save` wrote."""
        spec = PreprocessingSpec.from_json((directory / SPEC_FILE).read_text("utf-8"))
        return cls(spec, (directory / TOKENIZER_FILE).read_text("utf-8"))

    def save(self, directory: Path) -> None:
        """Write the spec and the tokenizer into an existing directory; `save_snapshot` writes the code."""
        (directory / SPEC_FILE).write_text(
            json.dumps(dataclasses.asdict(self.spec), indent=2) + "\n", "utf-8"
        )
        (directory / TOKENIZER_FILE).write_text(self.tokenizer_json, "utf-8")

    def within(self, limits: Limits) -> Preprocessor:
        """The same with these limits."""
        return Preprocessor(self.spec.within(limits), self.tokenizer_json)

    def rows(self, items: Sequence[tuple[bytes, bytes]]) -> list[Row | InvalidInput]:
        """Preprocess many (image file, UTF-8 text) pairs; a bad one yields its error in its place."""
        batch = self.batch(items)
        return [batch.row(index) for index in range(len(items))]

    def batch(self, items: Sequence[tuple[bytes, bytes]]) -> Batch:
        """The same, into shared buffers, which saves a copy."""
        size_px = self.spec.image_size_px
        pixel_values = np.zeros((len(items), 3, size_px, size_px), np.uint8)
        image_present = np.zeros((len(items), 1), np.bool_)
        decoded_pixels = np.zeros(len(items), np.int64)
        texts = [""] * len(items)
        errors: dict[int, InvalidInput] = {}
        for index, (image, text) in enumerate(items):
            try:
                if image:
                    pixel_values[index], decoded_pixels[index] = self._square(image)
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
        """Decode, turn upright, fit into a square as the spec says.

        data     one encoded image file; empty: no image
        returns  (3, H, W) uint8 RGB, or None where there is no image
        raises   InvalidInput
        """
        return np.ascontiguousarray(self._square(data)[0]) if data else None

    def _square(self, data: bytes) -> tuple[NDArray[np.uint8], int]:
        """(3, H, W) uint8 RGB, and how many pixels were decoded. No two decoded images are held at once."""
        square, num_pixels = _fit(data, self.spec, self.spec.image_size_px, self.spec.image_fit)
        return np.asarray(square).transpose(2, 0, 1), num_pixels

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

    def has_text(self, text: str) -> bool:
        """Whether the text has a token. Most tokenizers find none in zero-width characters."""
        return len(self._tokenizer.encode(text).ids) > self._num_special_tokens

    def tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokenise to one fixed length, so that all requests have one shape and batch together.

        returns  input_ids (B, L) int64, attention_mask (B, L) int64; a text without tokens (empty, blank)
                 has a mask of zeros
        """
        input_ids = np.full((len(texts), self.spec.max_tokens), self._pad_id, np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, encoding in enumerate(self._tokenizer.encode_batch_fast(list(texts))):
            ids = encoding.ids
            input_ids[row, : len(ids)] = ids
            if len(ids) > self._num_special_tokens:
                attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask


def fit_image(data: bytes, spec: PreprocessingSpec, size_px: int | None = None) -> Image.Image:
    """Decode one image file and fit it into a white square: upright, centred, nothing cropped.

    size_px  None: that of the model's
    raises   InvalidInput
    """
    return _fit(data, spec, size_px or spec.image_size_px, "pad")[0]


def _fit(data: bytes, spec: PreprocessingSpec, size_px: int, fit: Fit) -> tuple[Image.Image, int]:
    """The image in its square, and the number of decoded pixels.

    A JPEG is decoded at a reduced scale, but at least twice its size in the square: this is cheaper, and the
    final resize still averages over real pixels. With twice the size, a 3000 x 500 image changed by 0.2 grey
    levels on average; with the size itself, by 3.7.
    """
    if len(data) > spec.max_image_bytes:
        accepted = f"at most {spec.max_image_bytes:,} bytes"
        raise InvalidInput("image", f"{len(data):,} bytes", accepted, IMAGE_BYTES)
    format = format_of(data)
    if format is None:
        inside = base64_format_of(data)
        kind = f"of base64 text of a {inside} file" if inside else "in no known format"
        found = f"{len(data):,} bytes {kind}"
        raise InvalidInput("image", found, spec.accepted_image, IMAGE_FORMAT)
    if not spec.max_pixels(format):
        raise InvalidInput("image", f"a file in {format}", spec.accepted_image, IMAGE_FORMAT)
    try:
        bare = strip_metadata(data)
        if bare.size is not None:
            _require_affordable(bare.size, bare, spec)
        image = open_image(bare)
        _require_affordable(image.size, bare, spec)
        orientation = orientation_of(image, bare)
        width, height = _fitted_size(image, size_px, fit)
        image = load_image(image, bare, (2 * width, 2 * height))
        num_pixels = image.width * image.height
        if fit == "crop":
            image = _middle(image)
        resized = _resize_on_white(image, *_fitted_size(image, size_px, fit), spec.image_resample)
        return _centre(_upright(resized, orientation), size_px), num_pixels
    except InvalidInput:
        raise
    except UnsupportedImage as error:
        raise InvalidInput("image", str(error), spec.accepted_image, IMAGE_FORMAT) from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        found = f"a damaged file ({error})"
        raise InvalidInput("image", found, spec.accepted_image, IMAGE_DAMAGED) from None


def _require_affordable(shape: tuple[int, int], bare: BareFile, spec: PreprocessingSpec) -> None:
    """Refuse an image above the limits by its header: a WebP of 38 bytes can claim 64 megapixels."""
    size, pixels = f"{shape[0]} x {shape[1]} pixels", shape[0] * shape[1]
    limit = spec.max_pixels(bare.format)
    if pixels > limit:
        accepted = f"at most {limit:,} pixels in a {bare.format}"
        raise InvalidInput("image", f"{size} in a {bare.format}", accepted, IMAGE_PIXELS)
    if bare.num_scans > 1 and (
        pixels * bare.samples_per_pixel > spec.max_jpeg_coefficients
        or pixels * bare.scanned_samples_per_pixel > spec.max_jpeg_scanned_samples
    ):
        found = f"{size} in a progressive JPEG of {bare.num_scans} scans"
        accepted = (
            f"at most {spec.max_jpeg_scanned_samples:,} samples in all scans together; save it as baseline"
        )
        raise InvalidInput("image", found, accepted, IMAGE_PIXELS)


def _fitted_size(image: Image.Image, size_px: int, fit: Fit) -> tuple[int, int]:
    """Width and height of the whole image for a square of this size."""
    if fit == "stretch":
        return size_px, size_px
    if fit == "crop":  # rounded down, as transformers does
        shorter = min(image.size)
        return size_px * image.width // shorter, size_px * image.height // shorter
    scale = size_px / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _middle(image: Image.Image) -> Image.Image:
    """What is left of a very long image. All of its square comes from there."""
    longest = MAX_CROPPED_RATIO * min(image.size)
    left, top = max(0, image.width - longest) // 2, max(0, image.height - longest) // 2
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


def _resize_on_white(image: Image.Image, width: int, height: int, resample: Resample) -> Image.Image:
    """RGB, averaged by whole factors first and then resampled, as Pillow's `reducing_gap` does.

    Up to four times the size there is no factor: the pixels are those of Pillow's plain `resize`.
    """
    factor = (image.width // (2 * width) or 1, image.height // (2 * height) or 1)
    box = (0, 0, image.width / factor[0], image.height / factor[1])
    return shrink_on_white(image, factor).resize((width, height), Image.Resampling[resample.upper()], box=box)


def shrink_on_white(image: Image.Image, factor: tuple[int, int]) -> Image.Image:
    """Average by whole factors, to RGB. Transparency becomes white, not black.

    It converts band by band, so that only one band is in memory beside the decoded image.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image.reduce(factor) if factor != (1, 1) else image
    rows = factor[1] * max(1, BAND_PX // factor[1])
    shrunk = Image.new("RGB", (-(-image.width // factor[0]), -(-image.height // factor[1])))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        shrunk.paste(_on_white(band).reduce(factor), (0, top // factor[1]))
    return shrunk


def _centre(image: Image.Image, size_px: int) -> Image.Image:
    """On a white square; what lies outside it is cut off."""
    if image.size == (size_px, size_px):
        return image
    canvas = Image.new("RGB", (size_px, size_px), WHITE)
    # Towards zero, not down: the middle of an image that is cut off is that of transformers.
    canvas.paste(image, (int((size_px - image.width) / 2), int((size_px - image.height) / 2)))
    return canvas


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnsupportedImage("pixels of 32 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, WHITE)
    canvas.paste(rgba, mask=rgba)
    return canvas


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn it as EXIF says."""
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _pad_id_of(tokenizer_json: str) -> int:
    """The tokenizer's own padding token; 0, as in BERT, if it has none."""
    padding = json.loads(tokenizer_json).get("padding")
    return int(padding["pad_id"]) if padding else 0
