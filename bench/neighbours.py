"""The cost of hostile requests for good ones: rounds of good traffic, without and with 10 % hostile requests.

    python -m bench.neighbours --repository build/model_repository

Rounds alternate, so that other load on the machine slows both kinds. Each caller sends one request after the
other. Prints the median latency of good requests in both kinds of round, and the ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diptych_serving.errors import UserError
from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.signals import end_in_order
from diptych_serving.traffic import ClosedLoop, Send, outcomes
from tests.helpers.bombs import BOMBS, encode
from tests.helpers.hostile_inputs import hostile_items
from tests.helpers.raw_wire import Item, Refused, ask_over_grpc, grpc_channel

SCHEDULE_LENGTH = 1000


def good_items() -> list[Item]:
    """Photos of web size with a short text."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels).resize((640, 640), Image.Resampling.BICUBIC) for pixels in noise]
    return [(encode(image, "JPEG", quality=85), b"a red apple on a table") for image in images]


def run_round(
    server: Server, good: list[Item], hostile: list[Item], share: float, callers: int, duration_s: float
) -> list[float]:
    """Milliseconds that each good request took."""
    choose = random.Random(0)
    is_hostile = [choose.random() < share for _ in range(SCHEDULE_LENGTH)]
    items = [choose.choice(hostile if each else good) for each in is_hostile]

    @contextlib.contextmanager
    def caller() -> Iterator[Send[Item]]:
        with grpc_channel(server) as channel:
            yield lambda item: ask_over_grpc(channel, *item)

    with ClosedLoop([caller] * callers, items, keeps_results=False) as loop:
        time.sleep(duration_s)
    calls = [call for call in loop.calls if not is_hostile[call.item]]
    if failed := [call for call in calls if not call.is_answered]:
        raise UserError(
            f"{len(failed)} good requests failed, the first with {failed[0].outcome}: {failed[0].result}"
        )
    if odd := outcomes(loop.calls).keys() - {"ndarray", Refused.__name__}:
        raise UserError(f"hostile requests ended in {', '.join(odd)}; expected answers and refusals")
    return [call.latency_ms for call in calls]


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--round-s", type=float, default=8)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.1, help="of hostile requests")
    options = parser.parse_args()
    good = good_items()
    hostile = [(make(), b"") for make in BOMBS.values()]
    hostile += [(item.image, item.text) for item in hostile_items()]
    with Server(options.repository, ServerConfig.on_free_ports()) as server:
        server.wait_until_ready()
        run_round(server, good, hostile, options.share, options.callers, 3)
        medians_ms: dict[float, list[float]] = {0.0: [], options.share: []}
        ratios = []
        for number in range(options.rounds):
            for share in medians_ms if number % 2 else reversed(medians_ms):
                taken_ms = run_round(server, good, hostile, share, options.callers, options.round_s)
                medians_ms[share].append(statistics.median(taken_ms))
                print(  # noqa: T201
                    f"round {number + 1}  {share:4.0%} hostile  {len(taken_ms):5} good answers  "
                    f"median {medians_ms[share][-1]:6.1f} ms",
                    flush=True,
                )
            ratios.append(medians_ms[options.share][-1] / medians_ms[0.0][-1])
    print(  # noqa: T201
        f"median with {options.share:.0%} hostile / without: {statistics.median(ratios):.2f} "
        f"(rounds {min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
