"""Checks image files from strangers: the format, the cost of decoding; removes metadata.

Metadata is removed before Pillow opens a file, because Pillow reads all of it (docs/security.md). A
snapshot of this file runs inside the server. It may import only Pillow, and must not know limits or models.
"""

from __future__ import annotations

import binascii
import dataclasses
import io
import operator
import re
import struct
from collections.abc import Callable, Iterator

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

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

# Real files have some dozens of segments before their pixels; PNGs of 20 MiB up to 5,120, in chunks of 4 KiB.
MAX_SEGMENTS = 6_000
MAX_SCANS = 500

JPEG_MARKER = re.compile(rb"\xff+[\x01-\xfe]")  # any number of filling bytes, then the marker's number
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


class UnsupportedImage(ValueError):
    """An intact file of a kind that is not read. The message names the kind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BareFile:
    """An image file without what its pixels do not need.

    size                       width and height, of a GIF: opening one already takes memory for them
    orientation                as in EXIF; 1: upright, or the decoder turns it
    lacks_end                  of a JPEG without its end marker
    num_scans                  of a JPEG that keeps its coefficients until the last scan; 1: all others
    samples_per_pixel          of such a JPEG; 1.5 with the usual 4:2:0
    scanned_samples_per_pixel  the same, summed over its scans
    """

    format: str
    data: bytes
    size: tuple[int, int] | None = None
    orientation: int = 1
    lacks_end: bool = False
    num_scans: int = 1
    samples_per_pixel: float = 1
    scanned_samples_per_pixel: float = 1


# The first letters of a file in base64, at least as many as a signature needs.
BASE64 = re.compile(rb"\s*(?:data:[\w/+.-]*;base64,)?([A-Za-z0-9+/_\s-]{24,})")
FROM_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")


def format_of(data: bytes) -> str | None:
    """A key of SIGNATURES, by the first bytes."""
    return next((name for name, signature in SIGNATURES.items() if signature.match(data)), None)


def base64_format_of(data: bytes) -> str | None:
    """The format of the file whose base64 text or data: URL this is, by its first letters."""
    match = BASE64.match(data[:256])
    if match is None:
        return None
    letters = b"".join(match[1].split()).translate(FROM_URL_ALPHABET)
    return format_of(binascii.a2b_base64(letters[: len(letters) // 4 * 4]))


def strip_metadata(data: bytes) -> BareFile:
    """Raises UnsupportedImage; for a damaged file ValueError or a similar error."""
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
    raise ValueError("no image in it")


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
    """Keep header, palette, the first frame's transparency, and all from the first frame on.

    Pillow takes memory for the first frame when it opens the file, and searches for one behind invalid data.
    """
    width, height = struct.unpack_from("<HH", data, 6)
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kept, budget = [data[:at]], MAX_SEGMENTS
    while data[at] != 0x2C:  # the first frame
        if data[at] != 0x21:
            raise ValueError("no image where one is expected")
        start, at = at, at + 2  # an extension: its kind, then blocks of at most 255 bytes
        while data[at]:
            at += 1 + data[at]
            budget -= 1
        at += 1
        if data[start + 1] == 0xF9:
            kept.append(data[start:at])
        if budget < 0:
            raise ValueError(f"more than {MAX_SEGMENTS:,} blocks before its first image")
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
    size = (max(width, left + frame_width), max(height, top + frame_height))
    return BareFile(format="GIF", data=b"".join([*kept, data[at:]]), size=size)


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
    # Their libraries read metadata, so a server that does not trust its callers refuses them.
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
    vars(image).pop("_decoder", None)  # WebP's, with two more copies of the image
    return image


def _load_without_end(bare: BareFile, size: tuple[int, int]) -> Image.Image:
    """Decode a JPEG that lacks only its end marker, as viewers do. Raises ValueError if more is missing.

    Data after a complete image is skipped, data after a truncated one is read as pixels: then two different
    endings give two different images.
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
    raise ValueError(f"more than {MAX_SEGMENTS:,} segments before its pixels")


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
