"""The odd and the hostile items that strangers send, each with what should come of it.

An odd one is answered as its plain counterpart is; a hostile one is refused, with a message.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw

TEXT = b"a leaf and a garden"
ORIENTATION = 0x0112  # EXIF tag
TURNED_LEFT = 6  # stored so; to be shown turned clockwise


@dataclasses.dataclass(frozen=True, kw_only=True)
class OddItem:
    """plain_image and plain_text  the everyday item whose answer it must get"""

    name: str
    image: bytes
    text: bytes = TEXT
    plain_image: bytes
    plain_text: bytes = TEXT


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostileItem:
    """message  a pattern for the whole error"""

    name: str
    image: bytes = b""
    text: bytes = TEXT
    message: str


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def draw_leaf() -> Image.Image:
    """An image that differs from its own rotations, in colours that a palette keeps."""
    image = Image.new("RGB", (90, 60), "white")
    ImageDraw.Draw(image).polygon([(5, 5), (80, 20), (30, 55)], fill=(30, 170, 60))
    return image


def black_png(width: int, height: int) -> bytes:
    """A whole PNG of one bit a pixel, made row by row: 25 kB of file for 200 megapixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    compressor = zlib.compressobj(9)
    row = b"\0" * (1 + (width + 7) // 8)  # the filter's number, then the pixels
    rows = [compressor.compress(row) for _ in range(height)]
    data = b"".join([*rows, compressor.flush()])
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def odd_items() -> list[OddItem]:
    leaf = draw_leaf()
    photo = encode(leaf, "JPEG", quality=95)
    # As large as the tiny model wants it. An image that is turned after it was resized differs by levels.
    small = leaf.resize((64, 64))
    upright = Image.open(io.BytesIO(encode(small, "JPEG", quality=95)))
    deep = np.linspace(0, 65535, 90 * 60).astype(np.uint16).reshape(60, 90)
    return [
        _cmyk_jpeg(leaf),
        OddItem(
            name="16-bit PNG",
            image=encode(Image.fromarray(deep)),
            plain_image=encode(Image.fromarray((deep >> 8).astype(np.uint8))),
        ),
        _palette_with_transparency(leaf),
        OddItem(
            name="photo rotated by EXIF",
            image=encode(small, "JPEG", quality=95, exif=exif(TURNED_LEFT)),
            plain_image=encode(upright.transpose(Image.Transpose.ROTATE_270)),
        ),
        OddItem(
            name="WebP with damaged EXIF",
            image=encode(leaf, "WEBP", lossless=True, exif=b"Exif\0\0ZZ\0*damaged"),
            plain_image=encode(leaf),
        ),
        OddItem(
            name="animated GIF",
            image=encode(leaf, "GIF", save_all=True, append_images=[leaf.rotate(90), leaf.rotate(180)]),
            plain_image=encode(Image.open(io.BytesIO(encode(leaf, "GIF"))).convert("RGB")),
        ),
        OddItem(name="0-byte image with words", image=b"", plain_image=b""),
        OddItem(
            name="blank text with an image",
            image=photo,
            text=b" \n\t",
            plain_image=photo,
            plain_text=b"",
        ),
        OddItem(
            name="as many words as are accepted",
            image=photo,
            text=(TEXT + b" and a tree" * 6000)[:65_536],
            plain_image=photo,
            plain_text=TEXT + b" and a tree" * 100,
        ),
    ]


def hostile_items() -> list[HostileItem]:
    photo = encode(Image.effect_noise((90, 60), 80).convert("RGB"), "JPEG")
    words = b"Not an image at all: a text file that someone has renamed to photo.jpg.\n"
    accepted = r"a whole JPEG, PNG, WebP, GIF or BMP file"
    pixels = r"at most 12,000,000 pixels in a PNG"
    return [
        HostileItem(
            name="truncated JPEG",
            image=photo[: len(photo) // 2],
            message=rf"preprocess: image: found a damaged file \(.*truncated.*\); accepted: {accepted}",
        ),
        HostileItem(
            name="text file as image",
            image=words,
            message=rf"preprocess: image: found {len(words)} bytes in no known format; accepted: {accepted}",
        ),
        HostileItem(
            name="0-byte image and empty text",
            text=b"",
            message="preprocess: image and text: found both empty; accepted: an image file, a text, or both",
        ),
        HostileItem(
            name="no image and blank text",
            text=b" \n\t",
            message="preprocess: image and text: found both empty; accepted: an image file, a text, or both",
        ),
        HostileItem(
            name="200-megapixel PNG",
            image=black_png(20_000, 10_000),
            message=rf"preprocess: image: found 20000 x 10000 pixels in a PNG; accepted: {pixels}",
        ),
        HostileItem(
            name="81-megapixel PNG",
            image=black_png(9_000, 9_000),
            message=rf"preprocess: image: found 9000 x 9000 pixels in a PNG; accepted: {pixels}",
        ),
        HostileItem(
            name="21 megabytes of image",
            image=photo + b"\0" * (20 * 2**20 + 1 - len(photo)),
            message=r"preprocess: image: found 20,971,521 bytes; accepted: at most 20,971,520 bytes",
        ),
        HostileItem(
            name="invalid UTF-8",
            image=photo,
            text=b"caf\xe9 au lait",
            message="preprocess: text: found byte 0xe9 at offset 3, which is not UTF-8; accepted: UTF-8",
        ),
        HostileItem(
            name="a megabyte of text",
            image=photo,
            text=b"a" * 2**20,
            message="preprocess: text: found 1,048,576 bytes; accepted: at most 65,536 bytes of UTF-8",
        ),
    ]


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def _cmyk_jpeg(leaf: Image.Image) -> OddItem:
    data = encode(leaf.convert("CMYK"), "JPEG", quality=95)
    decoded = Image.open(io.BytesIO(data)).convert("RGB")
    return OddItem(name="CMYK JPEG", image=data, plain_image=encode(decoded))


def _palette_with_transparency(leaf: Image.Image) -> OddItem:
    """Black pixels that are transparent: on white they are white.

    Of the model's own size, for resizing would mix the edges in another order.
    """
    leaf = leaf.resize((64, 64), Image.Resampling.NEAREST)
    indexed = leaf.quantize(4)
    white = indexed.getpixel((0, 0))
    palette = indexed.getpalette()
    assert palette is not None
    palette[3 * white : 3 * white + 3] = [0, 0, 0]
    on_white = leaf.quantize(4).convert("RGB")
    indexed.putpalette(palette)
    return OddItem(
        name="palette with transparency",
        image=encode(indexed, transparency=white),
        plain_image=encode(on_white),
    )
