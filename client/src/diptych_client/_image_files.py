"""Reads the header of an image file without a decoder, and hides metadata from decoders.

A decoder reads all metadata when it opens a file: for a JPEG of 400 kB with overlapping EXIF entries,
Pillow took 7.6 s and 3.2 GB. The code here takes time proportional to the file's size.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych_client._limits import Limits

# Pillow reads the comments of a GIF in quadratic time, so GIFs are never decoded here.
NEVER_DECODED = "GIF"

# As many segments as the server reads before it gives up.
_MAX_SEGMENTS = 6_000
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xfe])")
_JPEG_SCAN = re.compile(rb"\xff\xda..(.)", re.DOTALL)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = 0xC2
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))

_ORIENTATION_TAG = 0x0112
_TAGS_OF_MORE_TAGS = frozenset((34665, 34853, 40965))  # Exif, GPS, interoperability
_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


@dataclasses.dataclass(frozen=True)
class Header:
    """A file's header.

    width, height    0 if only a decoder knows them
    coefficients     of a progressive JPEG: a decoder holds all of them
    scanned_samples  of a progressive JPEG, summed over its scans
    """

    format: str
    width: int = 0
    height: int = 0
    coefficients: int = 0
    scanned_samples: int = 0

    @property
    def pixels(self) -> int:
        return self.width * self.height

    def is_taken(self, limits: Limits) -> bool:
        """Whether a server with these limits accepts the file."""
        return (
            0 < limits.max_pixels(self.format) >= self.pixels
            and self.coefficients <= limits.max_jpeg_coefficients
            and self.scanned_samples <= limits.max_jpeg_scanned_samples
        )


def needs_decoding(data: bytes, limits: Limits, shrink_to_px: int | None) -> Header | None:
    """The header of a file that must be converted; None for one that is sent unchanged.

    A file that is not an image is sent unchanged too: the server refuses it and says what it found.
    """
    header = read_header(data)
    if header is None or not header.is_taken(limits):
        return header
    is_small = shrink_to_px is None or max(header.width, header.height) <= shrink_to_px
    return None if is_small or header.format == NEVER_DECODED else header


def read_header(data: bytes) -> Header | None:
    """None if the format is unknown, or the file is too short or damaged."""
    for signature, read in _READERS.items():
        if re.match(signature, data, re.DOTALL):
            try:
                return read(data)
            except (struct.error, IndexError, ValueError, ArithmeticError):
                return None
    return None


def _read_jpeg_header(data: bytes) -> Header | None:
    for marker, start, _ in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            height, width, num_components = struct.unpack_from(">HHB", data, start + 5)
            if marker != _PROGRESSIVE:
                return Header("JPEG", width, height)
            components = data[start + 10 : start + 10 + 3 * num_components]
            factors = {
                name: (by >> 4) * (by & 15)
                for name, by in zip(components[::3], components[1::3], strict=True)
            }
            full = max(factors.values())
            heads = ((scan.end(), scan[1][0]) for scan in _JPEG_SCAN.finditer(data, start))
            scans = (data[at : at + 2 * num_components : 2] for at, num_components in heads)
            scanned = sum(factors.get(component, full) for scan in scans for component in scan)
            pixels = width * height
            return Header(
                "JPEG", width, height, pixels * sum(factors.values()) // full, pixels * scanned // full
            )
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment up to the first scan. May raise struct.error or ValueError."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        found = _JPEG_MARKER.match(data, at)
        if found is None:
            raise ValueError("no marker where one belongs")
        start, at = found.end() - 2, found.end() + struct.unpack_from(">H", data, found.end())[0]
        yield found[1][0], start, at
        if found[1] == b"\xda":
            return
    raise ValueError(f"more than {_MAX_SEGMENTS:,} segments before its image")


def _read_bmp_header(data: bytes) -> Header | None:
    if struct.unpack_from("<L", data, 14)[0] == 12:
        return Header("BMP", *struct.unpack_from("<HH", data, 18))
    width, height, compression = struct.unpack_from("<ll4xL", data, 18)
    if compression in (1, 2):  # run lengths: Pillow decodes them pixel by pixel, and the server refuses them
        return None
    return Header("BMP", abs(width), abs(height))  # a negative height: the first row is the top one


def _read_webp_header(data: bytes) -> Header | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<L", data, 21)
        return Header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return Header("WEBP", width, height)
    return None


def _read_bmff_header(data: bytes) -> Header | None:
    """What AVIF and HEIC share: a box that names the kinds of file that this one is."""
    (num_bytes,) = struct.unpack_from(">L", data)
    brands = {data[at : at + 4] for at in range(8, min(num_bytes, 64), 4)}
    if brands & {b"avif", b"avis"}:
        return Header("AVIF")
    return Header("HEIC") if brands & _HEIC_BRANDS else None


# By the first bytes of a file.
_READERS: dict[bytes, Callable[[bytes], Header | None]] = {
    rb"\xff\xd8\xff": _read_jpeg_header,
    rb"\x89PNG\r\n\x1a\n": lambda data: Header("PNG", *struct.unpack_from(">LL", data, 16)),
    rb"GIF8[79]a": lambda data: Header("GIF", *struct.unpack_from("<HH", data, 6)),
    rb"BM": _read_bmp_header,
    rb"RIFF....WEBP": _read_webp_header,
    rb"II\*\0|MM\0\*": lambda data: Header("TIFF"),
    rb"....ftyp": _read_bmff_header,
}


def bare(data: bytes, kind: str) -> tuple[bytes, int]:
    """The file without metadata that is slow to decode, and its orientation as in EXIF (also 1 if the decoder
    turns it). May raise struct.error or ValueError."""
    if kind == "JPEG":
        return _bare_jpeg(data)
    if kind == "TIFF":
        _require_few_tags(data)
    if kind in ("AVIF", "HEIC"):
        return _without_exif(data), 1
    return data, 1


def _bare_jpeg(data: bytes) -> tuple[bytes, int]:
    """Keep tables, frame and scans, and the application segments that define the colours."""
    kept, exif, end = [data[:2]], b"", 2
    for marker, start, end in _jpeg_segments(data):
        if marker in (0xE0, 0xEE) or not 0xE0 <= marker <= 0xFE:
            kept.append(data[start:end])
        elif marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", start + 4):
            exif = data[start + 4 : end]
    return b"".join([*kept, data[end:]]), orientation_of(exif)


def orientation_of(exif: bytes) -> int:
    """EXIF's orientation; 1, upright, if there is none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}L", exif, 4)
        for tag, kind, _, at in _tags(exif, order, start):
            if tag == _ORIENTATION_TAG:  # a SHORT, or a LONG as some phones write it
                return int(struct.unpack_from(f"{order}L" if kind == 4 else f"{order}H", exif, at)[0])
    except struct.error:
        pass
    return 1


def _tags(tiff: bytes, order: str, start: int) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, offset of its value or of the value's offset) in one directory; or struct.error."""
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        yield (*struct.unpack_from(f"{order}HHL", tiff, entry), entry + 8)


def _require_few_tags(tiff: bytes) -> None:
    """Refuse a TIFF whose tags overlap, so that they hold more than the file: Pillow reads each."""
    order = "<" if tiff.startswith(b"II") else ">"
    directories, seen, num_bytes = [4], set(), 0
    while directories:
        (start,) = struct.unpack_from(f"{order}L", tiff, directories.pop())
        if start in seen:
            continue
        seen.add(start)
        for tag, kind, count, at in _tags(tiff, order, start):
            num_bytes += 12 + _TIFF_TYPE_BYTES.get(kind, 1) * count
            if num_bytes > len(tiff) + 2**16:
                raise ValueError("its tags overlap")
            if tag in _TAGS_OF_MORE_TAGS:
                directories.append(at)


def _without_exif(data: bytes) -> bytes:
    """An AVIF or HEIC file with its EXIF hidden, because Pillow would read all of it. In these formats the
    orientation is elsewhere."""
    boxes, at = [], 0
    while at + 8 <= len(data):
        num_bytes, kind = struct.unpack_from(">L4s", data, at)
        if num_bytes == 1 and at + 16 <= len(data):  # the size follows in 64 bits
            (num_bytes,) = struct.unpack_from(">Q", data, at + 8)
        end = len(data) if num_bytes < 8 else at + num_bytes
        box = data[at:end]
        boxes.append(box if kind == b"mdat" else box.replace(b"Exif", b"free"))
        at = end
    return b"".join([*boxes, data[at:]])
