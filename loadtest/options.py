"""The load test's own arguments, of plain types, because a master sends them to its workers."""

from __future__ import annotations

from typing import Any

from locust.argument_parser import LocustArgumentParser

from loadtest.arrivals import ARRIVALS, POISSON
from loadtest.payloads import DEFAULT_MIX
from loadtest.plan import CONSTANT, SHAPES


def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    group = parser.add_argument_group("Diptych's load test")
    group.add_argument(
        "--arrivals",
        choices=ARRIVALS,
        default=POISSON,
        help="closed: a user waits for its answer. poisson, uniform: open loop, a user is one call a second.",
    )
    group.add_argument(
        "--shape", choices=SHAPES, default=CONSTANT, help="How the load runs over --run-time, up to --users."
    )
    group.add_argument(
        "--catalogue",
        default="data/openclipart/test.csv",
        help="A CSV with image_path and description: the items to send.",
    )
    group.add_argument("--mix", default=DEFAULT_MIX, help=f"Shares of the calls. Default: {DEFAULT_MIX}")
    group.add_argument("--slo", default="loadtest/slo.toml", help="The objectives; a breach fails the run.")
    group.add_argument(
        "--results", default="loadtest/results/last", help="The directory for summary.json and the charts."
    )
    group.add_argument("--timeout-s", type=float, default=5.0, help="The timeout of a call.")
    group.add_argument(
        "--settle-s", type=float, default=2.0, help="Seconds at the start of each phase that do not count."
    )
    group.add_argument(
        "--max-in-flight",
        type=int,
        default=1000,
        help="Calls at once per process; in open loop, more are missed.",
    )
    group.add_argument("--seed", type=int, default=0, help="The random seed of arrivals and items.")
