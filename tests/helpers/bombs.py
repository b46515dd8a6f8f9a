"""Small files that ask for much. `python -m bench.bombs` measures what each costs the preprocessor."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

LIMIT_PX = 2048  # a side of the largest WebP, GIF or BMP that is decoded
PNG_LIMIT_PX = (4000, 3000)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def flat(mode: str, width: int = LIMIT_PX, height: int = LIMIT_PX) -> Image.Image:
    """Half transparent where the mode knows that."""
    return Image.new(mode, (width, height), (9, 99, 199, 99) if mode == "RGBA" else 99 if mode != "1" else 1)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def overlapping_exif(num_entries: int = 20_000, entry_bytes: int = 500_000) -> bytes:
    """Entries that all point at the same block: a reader that keeps each needs 10 GB."""
    head = b"II*\0" + struct.pack("<LH", 8, num_entries)
    entries = b"".join(
        struct.pack("<HHLL", (number + 1000) & 0xFFFF, 7, entry_bytes, 8) for number in range(num_entries)
    )
    return (head + entries + b"\0\0\0\0").ljust(entry_bytes + 8, b"\0")


def exif_orientation(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def into_png(insert: bytes) -> bytes:
    png = encode(Image.new("RGB", (64, 64), "red"), "PNG")
    start = png.index(b"IDAT") - 4
    return png[:start] + insert + png[start:]


def into_jpeg(insert: bytes) -> bytes:
    """After the first two bytes, and without the resolution, so that Pillow looks for it in EXIF."""
    jpeg = encode(Image.new("RGB", (64, 64), "red"), "JPEG")
    start, end = jpeg.index(b"\xff\xe0"), jpeg.index(b"\xff\xdb")
    return jpeg[:start] + insert + jpeg[end:]


def into_gif(insert: bytes) -> bytes:
    gif = encode(Image.new("P", (64, 64)), "GIF")
    start = 13 + (3 << (gif[10] & 7) + 1)
    return gif[:start] + insert + gif[start:]


def gif_of_a_large_frame(width: int, height: int, before: bytes = b"") -> bytes:
    """A canvas of 64 x 64 with a frame that is to be wiped out after it was shown: opening takes memory."""
    gif = into_gif(b"\x21\xf9\x04\x08\0\0\0\0" + before)
    start = gif.index(b",\0\0\0\0\x40\0\x40\0")
    return gif[: start + 5] + struct.pack("<HH", width, height) + gif[start + 9 :]


def jpeg_exif(exif: bytes) -> bytes:
    parts = (exif[start : start + 65_000] for start in range(0, len(exif), 65_000))
    return b"".join(jpeg_segment(0xE1, b"Exif\0\0" + part) for part in parts)


def many_scans(side_px: int, num_scans: int, between: bytes = b"") -> bytes:
    """A progressive JPEG that says the same again and again, a few bytes each time."""
    jpeg = encode(flat("L", side_px, side_px), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + (between + scan) * (num_scans - jpeg.count(b"\xff\xda")) + jpeg[-2:]


def large_canvas_webp(side_px: int = 16_384) -> bytes:
    """An animation whose canvas is far larger than its only frame."""
    webp = encode(
        Image.new("RGB", (8, 8)), "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), 9)]
    )
    start = webp.index(b"VP8X") + 12
    size = (side_px - 1).to_bytes(3, "little")
    return webp[:start] + size + size + webp[start + 6 :]


def run_length_bmp(side_px: int = LIMIT_PX) -> bytes:
    """Eight bits a pixel in runs of 255."""
    data = b"\xff\x07" * (side_px * side_px // 255 + 1) + b"\0\1"
    offset = 14 + 40 + 4 * 256
    header = struct.pack("<LLLHHLLLLLL", 40, side_px, side_px, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<LLL", offset + len(data), 0, offset) + header + bytes(4 * 256) + data


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG, RGBA, at the limit": lambda: encode(flat("RGBA", *PNG_LIMIT_PX), "PNG"),
    "PNG, RGB, at the limit": lambda: encode(flat("RGB", *PNG_LIMIT_PX), "PNG"),
    "PNG, 16-bit grey, at the limit": lambda: encode(flat("I;16", *PNG_LIMIT_PX), "PNG"),
    "PNG, 1 bit, at the limit": lambda: encode(flat("1", *PNG_LIMIT_PX), "PNG"),
    "PNG, 1 bit, 64 megapixels": lambda: encode(flat("1", 8000, 8000), "PNG"),
    "PNG, RGBA, at the limit, turned by EXIF": lambda: encode(
        flat("RGBA", *PNG_LIMIT_PX), "PNG", exif=exif_orientation(6)
    ),
    "WebP, lossy, at the limit": lambda: encode(flat("RGB"), "WEBP", method=0),
    "WebP, lossless with alpha, at the limit": lambda: encode(flat("RGBA"), "WEBP", lossless=True, method=0),
    "WebP of 38 bytes, 64 megapixels": lambda: encode(
        flat("RGB", 8000, 8000), "WEBP", lossless=True, method=0
    ),
    "WebP, large canvas": large_canvas_webp,
    "GIF, at the limit": lambda: encode(flat("P"), "GIF"),
    "GIF of a frame beyond its canvas": lambda: gif_of_a_large_frame(65_000, 2_700),
    "GIF of a frame behind rubbish": lambda: gif_of_a_large_frame(65_000, 2_700, before=b"rubbish"),
    "GIF of comments behind rubbish": lambda: into_gif(b"\1" + b"\x21\xfe\1a\0" * 3_000_000),
    "BMP of run lengths": run_length_bmp,
    "JPEG, one scan, 64 megapixels": lambda: encode(flat("RGB", 8000, 8000), "JPEG"),
    "JPEG, one scan, 64 megapixels, without its end": lambda: encode(flat("RGB", 8000, 8000), "JPEG")[:-2],
    "JPEG, progressive, 12 megapixels, without its end": lambda: encode(
        flat("RGB", 4000, 3000), "JPEG", progressive=True
    )[:-2],
    "JPEG of empty segments between its scans": lambda: many_scans(
        64, 20, between=jpeg_segment(0xE5, b"") * 200_000
    ),
    "JPEG of filling between its scans": lambda: many_scans(64, 20, between=b"\xff" * 900_000 + b"\0"),
    "JPEG, progressive, 12 megapixels": lambda: encode(flat("RGB", 4000, 3000), "JPEG", progressive=True),
    "JPEG, 95 scans of a megapixel": lambda: many_scans(1024, 95),
    "JPEG, 1,000 scans of 16 megapixels": lambda: many_scans(4000, 1000),
    "JPEG, 200 scans behind false ones": lambda: many_scans(
        4000, 200, between=jpeg_segment(0xFE, b"\xff\xda")
    ),
    "overlapping EXIF in a PNG": lambda: into_png(png_chunk(b"eXIf", overlapping_exif())),
    "overlapping EXIF in a JPEG": lambda: into_jpeg(jpeg_exif(overlapping_exif())),
    "overlapping EXIF in a WebP": lambda: encode(
        Image.new("RGB", (64, 64)), "WEBP", exif=b"Exif\0\0" + overlapping_exif()
    ),
    "PNG of compressed comments": lambda: into_png(
        b"".join(png_chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(1_000_000))) for n in range(60))
    ),
    "PNG of empty chunks": lambda: into_png(png_chunk(b"IDAT", b"") * 1_500_000),
    "JPEG of empty segments": lambda: into_jpeg(jpeg_segment(0xE5, b"") * 4_000_000),
    "JPEG of filling": lambda: into_jpeg(b"\xff" * 19_000_000),
    "GIF of comments": lambda: into_gif(b"\x21\xfe\1a\0" * 3_000_000),
}
