"""A closed loop of callers in a separate process: each sends its next request after its answer.

`python -m diptych_serving.tuning.closed_loop` reads a job and writes a Load, as JSON.
Its CPU time is the clients' only, and its threads do not slow the measuring process.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from diptych_client import Client, DiptychError
from diptych_serving.errors import UserError

TIMEOUT_S = 60.0
Call = Callable[[bytes, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """The callers' results after the warm-up; num_answered also counts earlier and late answers.

    Times in milliseconds, client_cpu_ms for each item.
    """

    concurrency: int
    num_items: int
    num_answered: int
    num_errors: int
    items_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    client_cpu_ms: float


def run_load(
    url: str,
    items: Path,
    *,
    concurrency: int,
    duration_s: float,
    warmup_s: float = 1.0,
    caller: str = "diptych",
) -> Load:
    """Load a server from another process.

    items   a file that `save_items` wrote
    caller  'diptych' or 'MODULE:FUNCTION', where the function takes a URL and returns a Call for one thread
    raises  UserError if the load could not be made
    """
    job = {
        "url": url,
        "items": str(items),
        "concurrency": concurrency,
        "duration_s": duration_s,
        "warmup_s": warmup_s,
        "caller": caller,
    }
    command = [sys.executable, "-m", "diptych_serving.tuning.closed_loop"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{url}: the load could not be made: {done.stderr.strip().splitlines()[-1:]}")
    return Load(**json.loads(done.stdout))


def save_items(items: Sequence[tuple[bytes, str]], path: Path) -> None:
    """Save (image file, text) pairs for the loading process."""
    with path.open("wb") as file:
        for image, text in items:
            data = text.encode()
            file.write(len(image).to_bytes(4, "little") + len(data).to_bytes(4, "little") + image + data)


def load_items(path: Path) -> list[tuple[bytes, str]]:
    """Read what `save_items` wrote."""
    data, items, start = path.read_bytes(), [], 0
    while start < len(data):
        image, text = (int.from_bytes(data[start + at : start + at + 4], "little") for at in (0, 4))
        start += 8
        items.append((data[start : start + image], data[start + image : start + image + text].decode()))
        start += image + text
    return items


def diptych_caller(url: str) -> Callable[[], Call]:
    """Our client, shared by all threads."""
    client = Client(url, timeout_s=TIMEOUT_S)

    def call(image: bytes, text: str) -> None:
        client.classify(image=image or None, text=text or None)

    return lambda: call


def measure(
    make_call: Callable[[], Call],
    items: Sequence[tuple[bytes, str]],
    *,
    concurrency: int,
    duration_s: float,
    warmup_s: float,
) -> Load:
    """Run the callers, and count the answers between the warm-up and the end.

    Each makes one call before the clock starts, so that imports, connections and labels are not measured.
    """
    latencies_s: list[list[float]] = [[] for _ in range(concurrency)]
    answered, errors = [0] * concurrency, [0] * concurrency
    begin_s = end_s = 0.0

    def start_clock() -> None:
        nonlocal begin_s, end_s
        begin_s = time.monotonic() + warmup_s
        end_s = begin_s + duration_s

    are_ready = threading.Barrier(concurrency + 1, action=start_clock)

    def ask(call: Call, index: int, number: int) -> None:
        image, text = items[index % len(items)]
        start_s = time.monotonic()
        try:
            call(image, text)
        except (DiptychError, OSError):
            errors[number] += 1
            return
        done_s = time.monotonic()
        answered[number] += 1
        if begin_s and begin_s <= done_s <= end_s:
            latencies_s[number].append(done_s - start_s)

    def run(number: int) -> None:
        call = make_call()
        ask(call, number, number)
        are_ready.wait()
        for index in itertools.count(number + concurrency, concurrency):
            if time.monotonic() >= end_s:
                return
            ask(call, index, number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(concurrency)]
    for thread in threads:
        thread.start()
    are_ready.wait()
    time.sleep(max(0.0, begin_s - time.monotonic()))
    cpu_s = time.process_time()
    time.sleep(max(0.0, end_s - time.monotonic()))
    cpu_s = time.process_time() - cpu_s
    for thread in threads:
        thread.join()
    found = np.array([value for values in latencies_s for value in values]) * 1000
    if not len(found):
        raise UserError(f"no answer within {duration_s:g} s, {sum(errors)} errors")
    p50, p95, p99 = np.percentile(found, [50, 95, 99]).tolist()
    return Load(
        concurrency=concurrency,
        num_items=len(found),
        num_answered=sum(answered),
        num_errors=sum(errors),
        items_per_s=len(found) / duration_s,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        client_cpu_ms=cpu_s * 1000 / len(found),
    )


def main() -> None:
    """One job."""
    job = json.load(sys.stdin)
    module, _, function = job["caller"].partition(":")
    make_caller = getattr(import_module(module), function) if function else diptych_caller
    load = measure(
        make_caller(job["url"]),
        load_items(Path(job["items"])),
        concurrency=job["concurrency"],
        duration_s=job["duration_s"],
        warmup_s=job["warmup_s"],
    )
    json.dump(dataclasses.asdict(load), sys.stdout)


if __name__ == "__main__":
    main()
