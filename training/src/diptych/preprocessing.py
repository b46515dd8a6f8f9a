"""Turns one item's raw bytes into what the encoders read: pixels and tokens.

Training evaluates through this module and the server runs a snapshot of this very file, so the two
cannot drift. It may import numpy, pillow and tokenizers, and nothing else: no torch, no Triton, no Diptych.
"""

from __future__ import annotations

import dataclasses
import io
import json
import operator
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from tokenizers import Tokenizer

SPEC_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"

# Formats by their first bytes. A phone's multi-picture JPEG (MPO) is read as the first of its images.
SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "AVIF": re.compile(rb"....ftyp(?:avif|avis|(?:mif1|msf1)(?=.{4}(?:.{4}){0,20}avi[fs]))", re.DOTALL),
    "HEIC": re.compile(rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL),
}
WHITE = (255, 255, 255)
BAND_PX = 256  # rows that are converted at once

# Real files have some dozens of segments before their pixels; PNGs of 20 MiB up to 5,120, in chunks of 4 KiB.
MAX_SEGMENTS = 6_000
MAX_SCANS = 500

JPEG_MARKER = re.compile(rb"\xff+[\x01-\xfe]")  # any number of filling bytes, then its number
JPEG_MARKER_IN_SCANS = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a stuffed byte nor a restart
PROGRESSIVE = 0xC2
JPEG_FRAMES = (0xC0, 0xC1, PROGRESSIVE)
JPEG_SCAN, JPEG_END = 0xDA, b"\xff\xd9"
EXIF_ORIENTATION = 0x0112
EXIF_INTEGERS = {1: "B", 3: "H", 4: "L"}  # by the number of the type; phones write the second and the third
# The tags of a TIFF without which its pixels cannot be read.
TIFF_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
}
TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # of a type's values
TIFF_REDUCED, DNG_VERSION = 254, 50706
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
class Limits:
    """What is refused, by its size alone and before it is decoded. 0 pixels: the format is refused.

    The defaults are those of a server that strangers may ask: decoding takes at most 64 MiB, and seldom more
    than a tenth of a second. docs/inputs.md has the measurements. The client keeps a copy of them.

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
        """Of a format as SIGNATURES names it."""
        limit: int = getattr(self, f"max_{format.lower()}_pixels")
        return limit

    @property
    def formats(self) -> list[str]:
        """Those that are taken."""
        return [format for format in SIGNATURES if self.max_pixels(format)]

    @property
    def accepted_image(self) -> str:
        """In words, for messages."""
        *others, last = self.formats
        return f"a whole {', '.join(others)} or {last} file" if others else f"a whole {last} file"


LIMIT_NAMES = tuple(field.name for field in dataclasses.fields(Limits))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessingSpec(Limits):
    """Everything that decides how an item becomes tensors, and what is refused. Saved beside its weights."""

    image_size_px: int
    max_tokens: int

    @classmethod
    def from_json(cls, text: str) -> PreprocessingSpec:
        """What `Preprocessor.save` wrote. A limit that is not named there has its default."""
        found = json.loads(text)
        return cls(
            **{field.name: found[field.name] for field in dataclasses.fields(cls) if field.name in found}
        )

    def within(self, limits: Limits) -> PreprocessingSpec:
        """The same with these limits."""
        return dataclasses.replace(self, **{name: getattr(limits, name) for name in LIMIT_NAMES})

    def stricter(self, other: Limits) -> PreprocessingSpec:
        """The same with the lower of both limits, each for itself."""
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
        spec = PreprocessingSpec.from_json((directory / SPEC_FILE).read_text("utf-8"))
        return cls(spec, (directory / TOKENIZER_FILE).read_text("utf-8"))

    def save(self, directory: Path) -> None:
        """Write the spec and the tokenizer into an existing directory."""
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
        """Decode, turn upright, fit into a white square.

        data     one encoded image file; empty: no image
        returns  (3, H, W) uint8 RGB, or None where there is no image
        raises   InvalidInput
        """
        return np.ascontiguousarray(self._square(data)[0]) if data else None

    def _square(self, data: bytes) -> tuple[NDArray[np.uint8], int]:
        """(3, H, W) uint8 RGB, and how many pixels were decoded. No two decoded images are held at once."""
        square, num_pixels = _fit(data, self.spec, self.spec.image_size_px)
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


def fit_image(data: bytes, spec: PreprocessingSpec, size_px: int | None = None) -> Image.Image:
    """Decode one image file and fit it into a white square: upright, centred, nothing cropped.

    size_px  None: as the model sees it
    raises   InvalidInput
    """
    return _fit(data, spec, size_px or spec.image_size_px)[0]


def _fit(data: bytes, spec: PreprocessingSpec, size_px: int) -> tuple[Image.Image, int]:
    """The same, and how many pixels the decoder gave.

    A JPEG is decoded at a reduced scale, never below twice what is left of it in the square: cheaper, and
    the final resize still averages over real pixels. At once the size instead of twice, a 3000 x 500 image
    moved by 3.7 grey levels on average; at twice by 0.2.
    """
    if len(data) > spec.max_image_bytes:
        accepted = f"at most {spec.max_image_bytes:,} bytes"
        raise InvalidInput("image", f"{len(data):,} bytes", accepted, IMAGE_BYTES)
    format = format_of(data)
    if format is None:
        found = f"{len(data):,} bytes in no known format"
        raise InvalidInput("image", found, spec.accepted_image, IMAGE_FORMAT)
    if not spec.max_pixels(format):
        raise InvalidInput("image", f"a file in {format}", spec.accepted_image, IMAGE_FORMAT)
    try:
        bare = strip_metadata(data)
        image = open_image(bare)
        _require_affordable(image, bare, spec)
        orientation = orientation_of(image, bare)
        width, height = _fitted_size(image, size_px)
        image = load_image(image, bare, (2 * width, 2 * height))
        num_pixels = image.width * image.height
        resized = _resize_on_white(image, *_fitted_size(image, size_px))
        return _centre(_upright(resized, orientation), size_px), num_pixels
    except InvalidInput:
        raise
    except UnsupportedImage as error:
        raise InvalidInput("image", str(error), spec.accepted_image, IMAGE_FORMAT) from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        found = f"a damaged file ({error})"
        raise InvalidInput("image", found, spec.accepted_image, IMAGE_DAMAGED) from None


def _require_affordable(image: Image.Image, bare: BareFile, spec: PreprocessingSpec) -> None:
    """Refuse by its header what is beyond the limits. A WebP of 38 bytes may hold 64 megapixels."""
    size, pixels = f"{image.width} x {image.height} pixels", image.width * image.height
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


def _fitted_size(image: Image.Image, size_px: int) -> tuple[int, int]:
    """Width and height of the whole image in a square of this size."""
    scale = size_px / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _resize_on_white(image: Image.Image, width: int, height: int) -> Image.Image:
    """RGB, averaged by whole factors first and then resampled, as Pillow's `reducing_gap` does."""
    factor = (image.width // (2 * width) or 1, image.height // (2 * height) or 1)
    box = (0, 0, image.width / factor[0], image.height / factor[1])
    return shrink_on_white(image, factor).resize((width, height), Image.Resampling.BICUBIC, box=box)


def shrink_on_white(image: Image.Image, factor: tuple[int, int]) -> Image.Image:
    """Average by whole factors, to RGB. Transparency becomes white, not black.

    Goes band by band, so that beside the decoded image only a band of it is ever in memory.
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
    """On a white square."""
    canvas = Image.new("RGB", (size_px, size_px), WHITE)
    canvas.paste(image, ((size_px - image.width) // 2, (size_px - image.height) // 2))
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


# What follows keeps metadata away from Pillow, which reads all of it: a WebP of 500 kB with overlapping EXIF
# entries took 21 s and 9.6 GB, a GIF of comments more than a minute, a JPEG of empty segments 6 s.


class UnsupportedImage(ValueError):
    """A whole file of a kind that is not read. The message says what it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BareFile:
    """An image file without what its pixels do not need.

    orientation                as in EXIF; 1: upright, or the decoder turns it
    lacks_end                  of a JPEG without its end marker
    num_scans                  of a JPEG that keeps its coefficients until the last scan; 1: all others
    samples_per_pixel          of such a JPEG; 1.5 with the usual 4:2:0
    scanned_samples_per_pixel  the same, summed over its scans
    """

    format: str
    data: bytes
    orientation: int = 1
    lacks_end: bool = False
    num_scans: int = 1
    samples_per_pixel: float = 1
    scanned_samples_per_pixel: float = 1


def format_of(data: bytes) -> str | None:
    """A key of SIGNATURES, by the first bytes."""
    return next((name for name, signature in SIGNATURES.items() if signature.match(data)), None)


def strip_metadata(data: bytes) -> BareFile:
    """Raises UnsupportedImage, and ValueError or the like for a damaged file."""
    format = format_of(data)
    if format is None:
        raise UnsupportedImage("no known format")
    return STRIPPERS[format](data)


def _strip_jpeg(data: bytes) -> BareFile:
    """Keep tables, frame and scans; of the application segments JFIF's and Adobe's: they tell the colours."""
    kept, exif = [data[:2]], b""
    frame_marker, components, samples = 0, b"", [0]
    for marker, start, end in _jpeg_segments(data):
        if marker in JPEG_FRAMES:
            frame_marker = marker
            components = data[start + 10 : end : 3]
            samples = [(factors >> 4) * (factors & 15) for factors in data[start + 11 : end : 3]]
        if marker == JPEG_SCAN:  # the first; all after it is the decoder's
            if not any(samples):
                raise ValueError("neither baseline nor progressive")
            keeps_coefficients = frame_marker == PROGRESSIVE or data[start + 4] < len(samples)
            if keeps_coefficients:
                scans, picture_end = _scans(data, start)
            else:
                scans, picture_end = [components], data.find(JPEG_END, start) + 2
            lacks_end = picture_end < start
            if lacks_end and not set(components) <= set().union(*scans):
                raise ValueError("truncated: not every colour is in it")
            costs = dict(sorted(zip(components, samples, strict=False), key=operator.itemgetter(1)))
            full = max(samples)
            scanned = sum(costs.get(component, full) for scan in scans for component in scan)
            return BareFile(
                format="JPEG",
                data=b"".join([*kept, memoryview(data)[start : None if lacks_end else picture_end]]),
                orientation=_orientation(exif),
                lacks_end=lacks_end,
                num_scans=max(2, len(scans)) if keeps_coefficients else 1,
                samples_per_pixel=sum(samples) / full,
                scanned_samples_per_pixel=scanned / full,
            )
        if marker in (0xE0, 0xEE) or not 0xE0 <= marker <= 0xFE:
            kept.append(data[start:end])
        elif marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", start + 4):
            exif = data[start + 4 : end]
    raise ValueError("no picture in it")


def _scans(data: bytes, at: int) -> tuple[list[bytes], int]:
    """The components that each scan of a JPEG visits, and where the image ends; 0: without an end marker.

    Phones append a second image or a film behind the end.
    """
    scans: list[bytes] = []
    for _ in range(MAX_SEGMENTS):
        match = JPEG_MARKER_IN_SCANS.search(data, at)
        if match is None:
            return scans, 0
        marker, at = data[match.end() - 1], match.end()
        if match[0] == JPEG_END:
            return scans, at
        if marker == JPEG_SCAN:
            scans.append(data[at + 3 : at + 3 + 2 * data[at + 2] : 2])
            if len(scans) > MAX_SCANS:
                raise ValueError(f"more than {MAX_SCANS} scans")
        if marker != 1:  # the only other one that has no length
            at += struct.unpack_from(">H", data, at)[0]
    raise ValueError(f"more than {MAX_SEGMENTS:,} segments between its scans")


def _strip_png(data: bytes) -> BareFile:
    """Keep header, palette, transparency and pixels."""
    kept, exif = [data[:8]], b""
    for kind, start, end in _chunks(data, 8, ">", has_checksum=True):
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[start:end])
        elif kind == b"eXIf":
            exif = data[start + 8 : end - 4]
        if kind == b"IEND":
            break
    return BareFile(format="PNG", data=b"".join(kept), orientation=_orientation(exif))


def _strip_webp(data: bytes) -> BareFile:
    """Keep the pixels, of an animation those of the first frame; nothing behind the end of the file."""
    kept, exif, frames = [], b"", 0
    data = data[: 8 + struct.unpack_from("<L", data, 4)[0]]
    for kind, start, end in _chunks(data, 12, "<", has_checksum=False):
        frames += kind == b"ANMF"
        if kind in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM") or (kind == b"ANMF" and frames == 1):
            kept.append(data[start:end])
        elif kind == b"EXIF":
            exif = data[start + 8 : end]
    body = b"WEBP" + b"".join(kept)
    return BareFile(
        format="WebP",
        data=b"RIFF" + struct.pack("<L", len(body)) + body,
        orientation=_orientation(exif),
    )


def _strip_gif(data: bytes) -> BareFile:
    """Keep header, palette, the first frame's transparency, and all from the first frame on."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kept, budget = [data[:at]], MAX_SEGMENTS
    while data[at] == 0x21:  # an extension: its kind, then blocks of at most 255 bytes
        start, at = at, at + 2
        while data[at]:
            at += 1 + data[at]
            budget -= 1
        at += 1
        if data[start + 1] == 0xF9:
            kept.append(data[start:at])
        if budget < 0:
            raise ValueError(f"more than {MAX_SEGMENTS:,} blocks before its first picture")
    return BareFile(format="GIF", data=b"".join([*kept, data[at:]]))


def _strip_bmp(data: bytes) -> BareFile:
    """Nothing to strip. Run lengths are refused: Pillow decodes them pixel by pixel in Python."""
    header_bytes, compression = struct.unpack_from("<L12xL", data, 14)
    if header_bytes >= 40 and compression in (1, 2):
        raise UnsupportedImage("a BMP compressed by run lengths")
    return BareFile(format="BMP", data=data)


def _strip_tiff(data: bytes) -> BareFile:
    """The first image, with a new directory of the tags that its pixels need. The decoder turns it."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    (start,) = struct.unpack_from(f"{order}L", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    kept, num_bytes = [], 0
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, num_values, value = struct.unpack_from(f"{order}HHLL", data, at)
        if (tag == TIFF_REDUCED and value & 1) or tag == DNG_VERSION:
            raise UnsupportedImage("a camera's raw file")
        if tag in TIFF_TAGS:
            kept.append(data[at : at + 12])
            num_bytes += num_values * TIFF_BYTES.get(kind, 8)
    if num_bytes > len(data):
        raise ValueError("its tags overlap")
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    head = data[:4] + struct.pack(f"{order}L", len(data) + len(data) % 2)
    return BareFile(format="TIFF", data=b"".join([head, data[8:], bytes(len(data) % 2), directory]))


STRIPPERS: dict[str, Callable[[bytes], BareFile]] = {
    "JPEG": _strip_jpeg,
    "PNG": _strip_png,
    "WebP": _strip_webp,
    "GIF": _strip_gif,
    "BMP": _strip_bmp,
    "TIFF": _strip_tiff,
    # Their libraries read their metadata; a server that does not trust its callers refuses them.
    "AVIF": lambda data: BareFile(format="AVIF", data=data),
    "HEIC": lambda data: BareFile(format="HEIC", data=data),
}


def open_image(bare: BareFile) -> Image.Image:
    """Read its header. Not by Image.open, whose limit of pixels is lower than some of ours."""
    return OPENERS[bare.format](io.BytesIO(bare.data))


def _open_heic(file: io.BytesIO) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        found = "a file in HEIC, and no pillow-heif to read it (pip install 'diptych[heic]')"
        raise UnsupportedImage(found) from None
    image: Image.Image = HeifImageFile(file)
    return image


OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
    "HEIC": _open_heic,
}


def load_image(image: Image.Image, bare: BareFile, size: tuple[int, int]) -> Image.Image:
    """Decode what `open_image` opened.

    size  of a JPEG, at least which is to be left of it
    """
    if bare.lacks_end:
        return _load_without_end(bare, size)
    image.draft("RGB", size)
    image.load()
    vars(image).pop("_decoder", None)  # WebP's, with two more copies of the picture
    return image


def _load_without_end(bare: BareFile, size: tuple[int, int]) -> Image.Image:
    """A JPEG that lacks its end marker and nothing else, as viewers show it.

    What follows a whole image is skipped. What follows a truncated one is read as pixels: then two endings
    give two images.
    """
    both = []
    for filling in (b"\0", b"\xff\0"):
        ended = dataclasses.replace(bare, data=bare.data + 64 * filling + JPEG_END, lacks_end=False)
        both.append(load_image(open_image(ended), ended, size))
    if both[0].tobytes() != both[1].tobytes():
        raise ValueError("truncated")
    return both[0]


def orientation_of(image: Image.Image, bare: BareFile) -> int:
    """As in EXIF. The decoders of TIFF and HEIC turn the image themselves."""
    return _orientation(image.info.get("exif", b"")) if bare.format == "AVIF" else bare.orientation


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment up to the first scan, without the filling between them."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        match = JPEG_MARKER.match(data, at)
        if match is None:
            raise ValueError("truncated, or no marker where one belongs")
        start = match.end() - 2
        end = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
        yield data[start + 1], start, end
        at = end
    raise ValueError(f"more than {MAX_SEGMENTS:,} segments before its picture")


def _chunks(data: bytes, at: int, byte_order: str, *, has_checksum: bool) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk of a PNG or a RIFF file; the last one as far as it goes."""
    for _ in range(MAX_SEGMENTS):
        if at + 8 > len(data):
            return
        if has_checksum:
            num_bytes, kind = struct.unpack_from(f"{byte_order}L4s", data, at)
            end = at + 12 + num_bytes
        else:
            kind, num_bytes = struct.unpack_from(f"{byte_order}4sL", data, at)
            end = at + 8 + num_bytes + num_bytes % 2
        yield kind, at, end
        at = end
    raise ValueError(f"more than {MAX_SEGMENTS:,} chunks")


def _orientation(exif: bytes) -> int:
    """The tag of that name. Damaged EXIF is no reason to refuse: the pixels are whole."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}L", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == EXIF_ORIENTATION:
                return int(struct.unpack_from(order + EXIF_INTEGERS.get(kind, "H"), exif, entry + 8)[0])
    except struct.error:
        pass
    return 1


def _pad_id_of(tokenizer_json: str) -> int:
    """The padding token that the tokenizer's authors chose; BERT's, 0, where they chose none."""
    padding = json.loads(tokenizer_json).get("padding")
    return int(padding["pad_id"]) if padding else 0
