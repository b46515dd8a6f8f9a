"""`python -m bench.soak --minutes 10`. Exit status 1: a promise was broken."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.soak.soak import soak
from diptych_serving.errors import UserError
from diptych_serving.server.signals import end_in_order


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--repository", type=Path, default=Path("build/model_repository"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/soak"))
    options = parser.parse_args()
    try:
        broken = soak(options.repository, options.minutes * 60, options.out)
    except UserError as error:
        sys.exit(f"error: {error}")
    for line in broken:
        sys.stdout.write(f"BROKEN: {line}\n")
    sys.stdout.write(f"{options.out}.json and {options.out}.png hold the details.\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
