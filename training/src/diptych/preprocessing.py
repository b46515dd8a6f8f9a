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
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

SPEC_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"

# Formats that strangers may send, by their first bytes. TIFF, PSD and the like are left out: large decoders,
# few products. Phones' multi-picture JPEGs (MPO) are read as the first of their pictures.
SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
}
ACCEPTED_IMAGE = "a whole JPEG, PNG, WebP, GIF or BMP file"
WHITE = (255, 255, 255)

# Real files have some dozens of segments before their pixels; PNGs of 20 MiB up to 5,120, in chunks of 4 KiB.
MAX_SEGMENTS = 6_000
# Of a JPEG in many scans; two bytes each, so 64 MiB. A 12-megapixel photo has 18 million.
MAX_COEFFICIENTS = 2**25
# A tenth of a second. The usual ten scans visit the brightness of each pixel six times, and the two colours,
# which have a quarter as many samples, four times each: 8 samples a pixel, so that 12 megapixels pass.
MAX_SCANNED_SAMPLES = 100_000_000
MAX_SCANS = 500

JPEG_MARKER = re.compile(rb"\xff+[\x01-\xfe]")  # any number of filling bytes, then its number
JPEG_SCAN = re.compile(rb"\xff\xda(?=...)", re.DOTALL)  # what is counted twice costs nobody but its author
PROGRESSIVE = 0xC2
JPEG_FRAMES = (0xC0, 0xC1, PROGRESSIVE)
EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
    """Everything that decides how an item becomes tensors. Saved beside the weights that it belongs to.

    max_image_pixels   of a JPEG
    max_costly_pixels  of any other format: 2048 x 2048
    """

    image_size_px: int
    max_tokens: int
    max_image_bytes: int = 20 * 2**20
    max_image_pixels: int = 64_000_000
    max_costly_pixels: int = 2**22
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
        """(3, H, W) uint8 RGB, and how many pixels were decoded. No two decoded pictures are held at once."""
        image = decode_image(data, self.spec)
        square = np.asarray(fit_on_white(image, self.spec.image_size_px))
        return square.transpose(2, 0, 1), image.width * image.height

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
    try:
        bare = strip_metadata(data)
        image = Image.open(io.BytesIO(bare.data), formats=[bare.format])
        _require_cheap(image, bare, spec)
        width, height = _fitted_size(image, spec.image_size_px)
        image.draft("RGB", (2 * width, 2 * height))
        image.load()
        vars(image).pop("_decoder", None)  # WebP's, with two more copies of the picture
        return _to_rgb_or_rgba(_upright(image, bare.orientation))
    except InvalidInput:
        raise
    except Image.UnidentifiedImageError:
        found = "a damaged file (its header cannot be read)"
        raise InvalidInput("image", found, ACCEPTED_IMAGE, IMAGE_DAMAGED) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        count = re.search(r"(\d+) pixels", str(error))
        found = f"{int(count[1]):,} pixels" if count else "far too many pixels"
        raise InvalidInput("image", found, _accepted_size(spec), IMAGE_PIXELS) from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise InvalidInput("image", f"a damaged file ({error})", ACCEPTED_IMAGE, IMAGE_DAMAGED) from None


def _require_cheap(image: Image.Image, bare: BareFile, spec: PreprocessingSpec) -> None:
    """Refuse by its header what would take more than a tenth of a second or 64 MiB to decode.

    A file of 38 bytes can be a whole WebP of 64 megapixels: 2.4 s and 980 MB. What a megapixel costs, on a
    core of an AMD EPYC with Pillow 12.3:

                             flat (a bomb)  a photo   memory
        PNG, RGB                    12 ms     30 ms      4 MB
        PNG, RGBA                   24 ms                8 MB
        WebP                        17 ms     25 ms     16 MB
        GIF                          8 ms                5 MB
        JPEG, one scan             0.6 ms      2 ms      0 MB   decoded by rows, at a reduced scale
        JPEG, progressive          1 ms a scan           6 MB   all its coefficients are kept; a scan of a
                                                                colour at half the resolution costs a quarter
    """
    pixels = image.width * image.height
    is_cheap = bare.format == "JPEG"
    if pixels > (spec.max_image_pixels if is_cheap else spec.max_costly_pixels):
        found = f"{image.width} x {image.height} pixels in a {bare.format}"
        raise InvalidInput("image", found, _accepted_size(spec), IMAGE_PIXELS)
    if bare.num_scans > 1 and (
        pixels * bare.samples_per_pixel > MAX_COEFFICIENTS
        or pixels * bare.scanned_samples_per_pixel > MAX_SCANNED_SAMPLES
    ):
        found = f"{image.width} x {image.height} pixels in a progressive JPEG of {bare.num_scans} scans"
        accepted = f"at most {MAX_SCANNED_SAMPLES:,} samples in all scans together; save it as baseline"
        raise InvalidInput("image", found, accepted, IMAGE_PIXELS)


def _accepted_size(spec: PreprocessingSpec) -> str:
    return f"at most {spec.max_image_pixels:,} pixels in a JPEG, {spec.max_costly_pixels:,} in other formats"


def fit_on_white(image: Image.Image, size_px: int) -> Image.Image:
    """Scale to fit a white square, centred, nothing cropped. Transparency becomes white, not black."""
    width, height = _fitted_size(image, size_px)
    has_alpha = image.mode == "RGBA"
    premultiplied = image.convert("RGBa") if has_alpha else image  # resize does so too, but forgets the gap
    resized = premultiplied.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    resized = resized.convert("RGBA") if has_alpha else resized
    canvas = Image.new("RGB", (size_px, size_px), WHITE)
    corner = ((size_px - width) // 2, (size_px - height) // 2)
    canvas.paste(resized, corner, mask=resized if has_alpha else None)
    return canvas


def _fitted_size(image: Image.Image, size_px: int) -> tuple[int, int]:
    """Width and height of the whole picture in a square of this size."""
    scale = size_px / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn it as EXIF says."""
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb_or_rgba(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


# What follows keeps metadata away from Pillow, which reads all of it: a WebP of 500 kB with overlapping EXIF
# entries took 21 s and 9.6 GB, a GIF of comments more than a minute, a JPEG of empty segments 6 s.


@dataclasses.dataclass(frozen=True, kw_only=True)
class BareFile:
    """An image file without what its pixels do not need.

    orientation                as in EXIF; 1: upright
    num_scans                  of a JPEG that keeps its coefficients until the last scan; 1: all others
    samples_per_pixel          of such a JPEG; 1.5 with the usual 4:2:0
    scanned_samples_per_pixel  the same, summed over its scans
    """

    format: str
    data: bytes
    orientation: int = 1
    num_scans: int = 1
    samples_per_pixel: float = 1
    scanned_samples_per_pixel: float = 1


def strip_metadata(data: bytes) -> BareFile:
    """Raises InvalidInput for a format that is not accepted, ValueError or the like for a damaged file."""
    for name, signature in SIGNATURES.items():
        if signature.match(data):
            return STRIPPERS[name](data)
    raise InvalidInput("image", f"{len(data):,} bytes in no known format", ACCEPTED_IMAGE, IMAGE_FORMAT)


def _strip_jpeg(data: bytes) -> BareFile:
    """Keep tables, frame and scans; of the application segments JFIF's and Adobe's: they tell the colours."""
    kept, exif = [data[:2]], b""
    frame_marker, components, samples = 0, b"", [0]
    for marker, start, end in _jpeg_segments(data):
        if marker in JPEG_FRAMES:
            frame_marker = marker
            components = data[start + 10 : end : 3]
            samples = [(factors >> 4) * (factors & 15) for factors in data[start + 11 : end : 3]]
        if marker == 0xDA:  # the first scan; all after it is the decoder's
            if not any(samples):
                raise ValueError("neither baseline nor progressive")
            keeps_coefficients = frame_marker == PROGRESSIVE or data[start + 4] < len(samples)
            scans = _scans(data, start) if keeps_coefficients else [components]
            costs = dict(sorted(zip(components, samples, strict=False), key=operator.itemgetter(1)))
            full = max(samples)
            scanned = sum(costs.get(component, full) for scan in scans for component in scan)
            return BareFile(
                format="JPEG",
                data=b"".join([*kept, memoryview(data)[start:]]),
                orientation=_orientation(exif),
                num_scans=max(2, len(scans)) if keeps_coefficients else 1,
                samples_per_pixel=sum(samples) / full,
                scanned_samples_per_pixel=scanned / full,
            )
        if marker in (0xE0, 0xEE) or not 0xE0 <= marker <= 0xFE:
            kept.append(data[start:end])
        elif marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", start + 4):
            exif = data[start + 4 : end]
    raise ValueError("no picture in it")


def _scans(data: bytes, start: int) -> list[bytes]:
    """The components that each scan of a JPEG visits. Raises ValueError where there are far too many."""
    if data.count(b"\xff\xda", start) > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans")
    heads = (match.start() + 5 for match in JPEG_SCAN.finditer(data, start))
    return [data[head : head + 2 * data[head - 1] : 2] for head in heads]


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
    """Keep the pixels, of an animation those of the first frame."""
    kept, exif, frames = [], b"", 0
    for kind, start, end in _chunks(data, 12, "<", has_checksum=False):
        frames += kind == b"ANMF"
        if kind in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM") or (kind == b"ANMF" and frames == 1):
            kept.append(data[start:end])
        elif kind == b"EXIF":
            exif = data[start + 8 : end]
    body = b"WEBP" + b"".join(kept)
    return BareFile(
        format="WEBP",
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
        raise InvalidInput("image", "a BMP compressed by run lengths", ACCEPTED_IMAGE, IMAGE_FORMAT)
    return BareFile(format="BMP", data=data)


STRIPPERS: dict[str, Callable[[bytes], BareFile]] = {
    "JPEG": _strip_jpeg,
    "PNG": _strip_png,
    "WEBP": _strip_webp,
    "GIF": _strip_gif,
    "BMP": _strip_bmp,
}


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
            tag, value = struct.unpack_from(f"{order}H6xH", exif, entry)
            if tag == EXIF_ORIENTATION:
                return int(value)
    except struct.error:
        pass
    return 1


def _pad_id_of(tokenizer_json: str) -> int:
    """The padding token that the tokenizer's authors chose; BERT's, 0, where they chose none."""
    padding = json.loads(tokenizer_json).get("padding")
    return int(padding["pad_id"]) if padding else 0
