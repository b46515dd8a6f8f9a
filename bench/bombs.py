"""The cost of hostile image files for the preprocessor: `python -m bench.bombs [--json]`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from diptych_serving.preprocessing import InvalidInput, PreprocessingSpec, fit_image
from tests.helpers.bombs import BOMBS, encode


def measure_all() -> Iterator[tuple[str, int, float, float, str]]:
    """(name, bytes of the file, seconds of CPU, MiB of extra memory, result) of each file."""
    spec = PreprocessingSpec(image_size_px=224, max_tokens=32)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):  # libraries load at first use
        fit_image(encode(Image.new("RGB", (600, 600)), format), spec)
    for name, make in BOMBS.items():
        data = make()
        before = _status_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        start = time.process_time()
        try:
            fit_image(data, spec)
            outcome = "answered"
        except InvalidInput as error:
            outcome = str(error).removeprefix("preprocess: image: found ")
        yield name, len(data), time.process_time() - start, _status_mib("VmHWM") - before, outcome


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    for measured in measure_all():
        if "--json" in sys.argv:
            line = json.dumps(measured)
        else:
            name, num_bytes, cpu_s, mib, outcome = measured
            line = f"{name:<40}{num_bytes:>11,} B {1000 * cpu_s:5.0f} ms {mib:4.0f} MiB  {outcome[:70]}"
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
