"""Runs the benchmark and writes its table, charts and JSON.

python -m bench.speed --run runs/quickstart             all of it, on a quiet machine
python -m bench.speed --run runs/quickstart --quick     the same in little, to see that it works
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from bench.speed.measure import QUICK, Outcome, Plan, measure_pair
from bench.speed.pairs import ARTICLE, QUICKSTART, make_pair
from bench.speed.quiet import require_quiet
from bench.speed.results import print_results, save_results
from diptych_serving.errors import UserError
from diptych_serving.progress import console
from diptych_serving.repository.settings import load_settings
from diptych_serving.server.signals import end_in_order

RESULTS = Path("bench/results")


def main() -> int:
    options = _parse()
    end_in_order()  # the servers too that sleep between rounds
    plan = dataclasses.replace(QUICK if options.quick else Plan(), target=options.target)
    outcomes: dict[str, Outcome] = {}
    try:
        require_quiet(is_noise_accepted=options.noisy_ok)
        for name in options.pairs.split(","):
            settings = load_settings(options.tuning) if options.tuning else None
            with tempfile.TemporaryDirectory(prefix="diptych-bench-") as directory:
                pair = make_pair(
                    name,
                    Path(directory),
                    quickstart_run=options.run,
                    target=options.target,
                    precision=options.precision,
                    settings=settings,
                )
                outcomes[name] = measure_pair(pair, plan, Path(directory))
            print_results({name: outcomes[name]})
            save_results(outcomes, plan, options.results)  # after each: the second takes long
    except UserError as error:
        console.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="the quickstart's run")
    parser.add_argument("--pairs", default=f"{QUICKSTART},{ARTICLE}", help="which, separated by commas")
    parser.add_argument("--quick", action="store_true", help="a minute a pair; the figures mean nothing")
    parser.add_argument(
        "--noisy-ok", action="store_true", help="measure, and mark the results, though other processes work"
    )
    parser.add_argument("--target", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--precision", default="auto", help="as diptych export takes it")
    parser.add_argument("--tuning", type=Path, help="settings that diptych tune wrote")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where table, charts and JSON go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
