"""The cost of the client over raw tritonclient: both send the same requests to one server, in turns.

python -m bench.overhead --repository build/model_repository            starts a server of its own
python -m bench.overhead --repository build/model_repository --quick    to see that it works

The raw side is a caller's own code: new inputs for each call, a timeout, the result as an array; no labels,
no retries, no typed errors. Many short rounds alternate, so that changes of the machine affect both. Each
pair of rounds gives one ratio; the result is the median with a bootstrap interval over the pairs: target
shown, missed or not decided. CPU time is this process's, without the server's, and varies less than
throughput.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from rich.table import Table

from diptych_client import Client
from diptych_serving.errors import UserError
from diptych_serving.progress import console
from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.signals import end_in_order
from diptych_serving.traffic import ClosedLoop, Send, shared

CONCURRENCIES = (1, 16)
TEXT = "a drawing of a swan"
TIMEOUT_S = 30.0
TARGET = 0.97  # of the raw client's throughput
SHOWN, MISSED, UNDECIDED = "shown", "missed", "not decided"
COLUMNS = ("calls at once", "raw, calls/s", "ours, calls/s", "ratio", "target", "more CPU, ms a call")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One contender for some seconds.

    calls_per_s      answered, over all threads
    cpu_ms_per_call  of this process
    """

    calls_per_s: float
    cpu_ms_per_call: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A median and the ends of its 95 % interval."""

    median: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def main() -> int:
    end_in_order()
    options = _parse()
    num_rounds, seconds = (2, 1.0) if options.quick else (options.rounds, options.seconds)
    with Server(options.repository, ServerConfig.on_free_ports()) as server:
        server.wait_until_ready()
        table = Table(*COLUMNS)
        verdicts = []
        for concurrency in CONCURRENCIES:
            with raw_client(server) as raw, our_client(server) as ours:
                rounds = alternate((raw, ours), concurrency, num_rounds, seconds)
            ratio = estimate([our.calls_per_s / its.calls_per_s for its, our in rounds])
            extra_ms = estimate([our.cpu_ms_per_call - its.cpu_ms_per_call for its, our in rounds])
            verdicts.append(judge(ratio))
            table.add_row(str(concurrency), *_speeds(rounds), f"{ratio:.3f}", verdicts[-1], f"{extra_ms:.3f}")
    console.print(table)
    console.print(
        f"Target: {TARGET:.2f} of the raw client's throughput. In brackets: 95 %, {num_rounds} pairs"
    )
    return 1 if MISSED in verdicts and not options.quick else 0


def estimate(values: Sequence[float], num_draws: int = 2000) -> Estimate:
    """The median, and a bootstrap of it (Efron, 1979)."""
    draws = np.random.default_rng(0).choice(values, (num_draws, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return Estimate(median=statistics.median(values), low=float(low), high=float(high))


def judge(ratio: Estimate) -> str:
    """What the whole interval says about the target."""
    if ratio.low >= TARGET:
        return SHOWN
    return MISSED if ratio.high < TARGET else UNDECIDED


def alternate(
    contenders: tuple[Send[None], Send[None]], concurrency: int, num_rounds: int, seconds: float
) -> list[tuple[Round, Round]]:
    """Pairs of rounds, in the contenders' order, after a short one of each to warm up."""
    for ask in contenders:
        run_round(ask, concurrency, seconds / 4)
    pairs = []
    for number in range(num_rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        done = {index: run_round(contenders[index], concurrency, seconds) for index in order}
        pairs.append((done[0], done[1]))
    return pairs


def run_round(ask: Send[None], concurrency: int, seconds: float) -> Round:
    """Raises UserError where a call failed."""
    with ClosedLoop([shared(ask)] * concurrency, [None], keeps_results=False) as loop:
        start_s, cpu_s = time.monotonic(), time.process_time()
        time.sleep(seconds)
    wall_s, cpu_s = time.monotonic() - start_s, time.process_time() - cpu_s
    num_calls = sum(call.end_s > start_s for call in loop.calls)
    if failed := [call for call in loop.calls if not call.is_answered]:
        raise UserError(
            f"{len(failed)} of the calls failed, the first with {failed[0].outcome}: {failed[0].result}"
        )
    return Round(calls_per_s=num_calls / wall_s, cpu_ms_per_call=1000 * cpu_s / num_calls)


@contextlib.contextmanager
def our_client(server: Server) -> Iterator[Send[None]]:
    image = make_image()
    with Client(server.grpc_url, timeout_s=TIMEOUT_S) as client:
        yield lambda _: client.classify(image, TEXT)


@contextlib.contextmanager
def raw_client(server: Server) -> Iterator[Send[None]]:
    image, text = make_image(), TEXT.encode()
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:

        def ask(_: None) -> object:
            inputs = []
            for name, value in (("image", image), ("text", text)):
                column = np.array([[value]], np.object_)
                inputs.append(triton.InferInput(name, column.shape, "BYTES").set_data_from_numpy(column))
            result = client.infer("classifier", inputs, client_timeout=TIMEOUT_S)
            return result.as_numpy("probabilities")

        yield ask


def make_image() -> bytes:
    """A JPEG of some 20 kB, like a thumbnail in a shop."""
    file = io.BytesIO()
    Image.effect_mandelbrot((400, 300), (-2, -1, 1, 1), 60).convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()


def _speeds(rounds: Sequence[tuple[Round, Round]]) -> list[str]:
    sides = ([pair[index].calls_per_s for pair in rounds] for index in (0, 1))
    return [f"{statistics.median(side):.1f}" for side in sides]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=_first_line())
    parser.add_argument("--repository", type=Path, default=Path("build/model_repository"))
    parser.add_argument("--rounds", type=int, default=30, help="of each, for each concurrency")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each round")
    parser.add_argument("--quick", action="store_true", help="seconds in all; the figures mean nothing")
    return parser.parse_args()


def _first_line() -> str:
    return (__doc__ or "").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
