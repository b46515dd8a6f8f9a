"""What hostile requests cost good ones: rounds of good traffic alone and with one hostile request in ten.

    python -m bench.neighbours --repository build/model_repository

Rounds alternate, so that whatever else slows the machine slows both. Each caller sends one request after the
other. It prints the median latency of the good requests in each kind of round, and their ratio.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diptych_serving.server import Server, ServerConfig, children
from tests.bombs import BOMBS, encode
from tests.helpers.hostile_inputs import hostile_items
from tests.helpers.raw_wire import Item, Refused, ask_over_grpc, grpc_channel


def good_items() -> list[Item]:
    """Photos of web size with a few words."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels).resize((640, 640), Image.Resampling.BICUBIC) for pixels in noise]
    return [(encode(picture, "JPEG", quality=85), b"a red apple on a table") for picture in pictures]


def run_round(
    server: Server, good: list[Item], hostile: list[Item], share: float, callers: int, duration_s: float
) -> list[float]:
    """Seconds that each good request took."""
    latencies_s: list[float] = []
    end = time.monotonic() + duration_s

    def call(seed: int) -> None:
        choose = random.Random(seed)
        with grpc_channel(server) as channel:
            while time.monotonic() < end:
                is_hostile = choose.random() < share
                item = choose.choice(hostile if is_hostile else good)
                start = time.monotonic()
                try:
                    ask_over_grpc(channel, *item)
                except Refused:
                    if not is_hostile:
                        raise
                if not is_hostile:
                    latencies_s.append(time.monotonic() - start)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies_s


def main() -> None:
    children.end_in_order()
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
        medians_s: dict[float, list[float]] = {0.0: [], options.share: []}
        ratios = []
        for number in range(options.rounds):
            for share in medians_s if number % 2 else reversed(medians_s):
                taken_s = run_round(server, good, hostile, share, options.callers, options.round_s)
                medians_s[share].append(statistics.median(taken_s))
                print(  # noqa: T201
                    f"round {number + 1}  {share:4.0%} hostile  {len(taken_s):5} good answers  "
                    f"median {1000 * medians_s[share][-1]:6.1f} ms",
                    flush=True,
                )
            ratios.append(medians_s[options.share][-1] / medians_s[0.0][-1])
    print(  # noqa: T201
        f"median with {options.share:.0%} hostile / without: {statistics.median(ratios):.2f} "
        f"(rounds {min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
