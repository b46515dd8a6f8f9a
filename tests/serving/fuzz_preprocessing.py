"""Feeds the preprocessor what strangers might send, mutated from real files and guided by coverage.

    python -m tests.serving.fuzz_preprocessing -runs=200000 -max_len=65536 CORPUS_DIRECTORY

Arguments are libFuzzer's; seeds are written into the directory first. An input is three bytes, the length of
the words, the words, and then the picture. It rides in the middle of a batch, and the run ends where
- anything but InvalidInput comes of it, or its message tells of our insides,
- a good row beside it gets other pixels or tokens than alone, or pads or a shape are wrong,
- it takes more than a second of CPU, or memory grows by more than 160 MiB in all.
"""

from __future__ import annotations

import io
import random
import resource
import struct
import sys
import time
import zlib
from pathlib import Path

import atheris

# Python's half alone is instrumented: the decoders in C come as wheels. Their seeds take the fuzzer in.
with atheris.instrument_imports(
    include=["diptych_serving.preprocessing", "diptych_serving.image_files", "PIL"]
):
    from PIL import Image, ImageDraw

    from diptych_serving import preprocessing

from tests.helpers.bombs import overlapping_exif
from tests.helpers.raw_wire import tells_of_our_insides
from tests.helpers.repository_files import tiny_tokenizer

MAX_CPU_S = 1.0
MAX_GROWTH_MIB = 160
MAX_MESSAGE = 400
NUM_CLIPART = 60
CLIPART = Path(__file__).parents[2] / "data" / "openclipart" / "images"
SPEC = preprocessing.PreprocessingSpec(image_size_px=32, max_tokens=8)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def draw() -> Image.Image:
    image = Image.new("RGB", (40, 24), "white")
    ImageDraw.Draw(image).polygon([(2, 2), (36, 8), (12, 22)], fill=(30, 170, 60))
    return image


def pictures() -> list[bytes]:
    """Every format in every mode that it knows, with metadata, animated, interlaced, progressive."""
    leaf = draw()
    exif = Image.Exif()
    exif[0x0112] = 6
    modes = {
        "JPEG": ("RGB", "L", "CMYK"),
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("L", "P"),
        "BMP": ("1", "L", "P", "RGB"),
    }
    found = []
    for format, names in modes.items():
        for mode in names:
            image = Image.new("I;16", (40, 24), 4000) if mode == "I;16" else leaf.convert(mode)
            found.append(encode(image, format))
    found += [
        encode(leaf, "JPEG", progressive=True, exif=exif, comment=b"words"),
        encode(leaf, "JPEG", subsampling=0, quality=20, icc_profile=b"\0" * 200),
        encode(leaf, "PNG", exif=exif, icc_profile=b"\0" * 200),
        encode(leaf.convert("P"), "PNG", transparency=0),
        encode(leaf, "WEBP", lossless=True, exif=exif, xmp=b"<x/>"),
        encode(leaf, "WEBP", save_all=True, append_images=[leaf.rotate(90)]),
        encode(leaf, "GIF", save_all=True, append_images=[leaf.rotate(90)], comment=b"words", transparency=0),
        encode(leaf, "WEBP", exif=b"Exif\0\0" + overlapping_exif(20, 300)),
        b"",
    ]
    return found


def texts() -> list[bytes]:
    return [
        b"",
        b"a red cat",
        "Größe 中文 😀 \u202e \u0301\u0301".encode(),
        b"\xff\xfe",
        b"a" * 300,
        b"[MASK] [PAD]",
    ]


def write_seeds(directory: Path) -> None:
    clipart = sorted(CLIPART.rglob("*.png")) if CLIPART.is_dir() else []
    small = [path for path in clipart if path.stat().st_size < 20_000]
    real = [path.read_bytes() for path in random.Random(0).sample(small, min(NUM_CLIPART, len(small)))]
    for number, picture in enumerate([*pictures(), *real]):
        text = texts()[number % len(texts())]
        (directory / f"seed-{number}").write_bytes(len(text).to_bytes(3, "little") + text + picture)
    for number, text in enumerate(texts()):
        (directory / f"text-{number}").write_bytes(len(text).to_bytes(3, "little") + text)


def split(data: bytes) -> tuple[bytes, bytes]:
    """(picture, words)"""
    end = 3 + int.from_bytes(data[:3], "little")
    return data[end:], data[3:end]


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's own mutation, and for most PNGs checksums that fit again, or none would get past them."""
    mutated = atheris.Mutate(data, len(data)) if data else data
    at = mutated.find(b"\x89PNG\r\n\x1a\n") + 8
    if at < 8 or not seed % 4:
        return mutated[:max_size]
    repaired = bytearray(mutated)
    while at + 12 <= len(repaired):
        end = at + 8 + struct.unpack_from(">L", repaired, at)[0]
        if end + 4 > len(repaired):
            break
        repaired[end : end + 4] = struct.pack(">L", zlib.crc32(repaired[at + 4 : end]))
        at = end + 4
    return bytes(repaired[:max_size])


class Target:
    """Good rows first and last, each with the answer that it gets alone."""

    def __init__(self) -> None:
        self._preprocessor = preprocessing.Preprocessor(SPEC, tiny_tokenizer().to_str())
        self._good = [(encode(draw(), "PNG"), b"a green cake"), (encode(draw().rotate(90), "JPEG"), b"a cat")]
        self._alone = [self._preprocessor.batch([item]) for item in self._good]
        self._start_mib = _peak_mib()
        self.num_answered = self.num_refused = 0

    def __call__(self, data: bytes) -> None:
        start = time.process_time()
        batch = self._preprocessor.batch([self._good[0], split(data), self._good[1]])
        cpu_s = time.process_time() - start
        if cpu_s > MAX_CPU_S:
            raise RuntimeError(f"took {cpu_s:.1f} s of CPU")
        if _peak_mib() - self._start_mib > MAX_GROWTH_MIB:
            raise RuntimeError(f"memory grew to {_peak_mib():.0f} MiB")
        self._check_neighbours(batch)
        self._check_own(batch)

    def _check_neighbours(self, batch: preprocessing.Batch) -> None:
        if set(batch.errors) - {1}:
            raise RuntimeError(f"good rows were refused: {batch.errors}")
        for row, alone in zip((0, 2), self._alone, strict=True):
            for name in ("pixel_values", "image_present", "input_ids", "attention_mask"):
                if getattr(batch, name)[row].tobytes() != getattr(alone, name)[0].tobytes():
                    raise RuntimeError(f"row {row} has other {name} than alone")

    def _check_own(self, batch: preprocessing.Batch) -> None:
        if error := batch.errors.get(1):
            self.num_refused += 1
            message = str(error)
            if type(error) is not preprocessing.InvalidInput or error.reason not in preprocessing.REASONS:
                raise RuntimeError(f"{type(error)}: {error}")
            if tells_of_our_insides(message) or len(message) > MAX_MESSAGE or not message.isprintable():
                raise RuntimeError(f"tells too much: {message!r}")
            return
        self.num_answered += 1
        is_text, ids = bool(batch.attention_mask[1].any()), batch.input_ids[1]
        if not (batch.image_present[1, 0] or is_text) or ids.min() < 0 or ids.max() > 10:
            raise RuntimeError(f"an answer to nothing, or tokens that are none: {ids}")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    directories = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    directories[0].mkdir(parents=True, exist_ok=True)
    write_seeds(directories[0])
    atheris.Setup(sys.argv, Target(), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
