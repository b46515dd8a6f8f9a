"""Many calls from processes that were forked after the first call, as by gunicorn's --preload; counts the
answers that belong to another call.

    python -m bench.forked_callers --wire http --workers 8 --calls 10000

Prints {"answered": ..., "wrong": ..., "failed": ...}. With --asynchronous the workers use AsyncClient.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from diptych_client import AsyncClient, Client, DiptychError, Retries

LABELS = ["electronics", "clothing", "books", "home: garden"]
TIMEOUT_S = 60.0


def outcome(label: str | None, number: int) -> str:
    return "answered" if label == LABELS[number % len(LABELS)] else "wrong"


def failure(error: DiptychError) -> str:
    return f"failed: {type(error).__name__}: {error.message}"


def ask(client: Client, number: int) -> str:
    try:
        return outcome(client.classify(text=str(number)).label, number)
    except DiptychError as error:
        return failure(error)


async def ask_asynchronously(client: AsyncClient, numbers: range) -> list[str]:
    async def ask_once(number: int) -> str:
        try:
            return outcome((await client.classify(text=str(number))).label, number)
        except DiptychError as error:
            return failure(error)

    return await asyncio.gather(*map(ask_once, numbers))


def work(client: Client, own: AsyncClient | None, numbers: range) -> collections.Counter[str]:
    """What one worker does: four calls at a time."""
    if own is not None:
        return collections.Counter(asyncio.run(ask_asynchronously(own, numbers)))
    with ThreadPoolExecutor(4) as threads:
        return collections.Counter(threads.map(lambda number: ask(client, number), numbers))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wire", choices=("grpc", "http"), required=True)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--asynchronous", action="store_true")
    arguments = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.client.echo_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())[arguments.wire]
    retries = Retries(max_attempts=1)  # a retry would hide a wrong answer that was noticed
    client = Client(url, timeout_s=TIMEOUT_S, retries=retries)
    own = AsyncClient(url, timeout_s=TIMEOUT_S, retries=retries) if arguments.asynchronous else None
    assert ask(client, 1) == "answered"  # the connection that forked processes must not share
    share = arguments.calls // arguments.workers
    pipes, workers = [], []
    for worker in range(arguments.workers):
        reading, writing = os.pipe()
        numbers = range(worker * share, (worker + 1) * share)
        process = os.fork()
        if process == 0:
            status = 1
            try:
                os.write(writing, json.dumps(work(client, own, numbers)).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        pipes.append(reading)
        workers.append(process)
    total = collections.Counter(ask(client, number) for number in range(share))  # the parent keeps calling
    for reading in pipes:
        with os.fdopen(reading) as pipe:
            total.update(json.loads(pipe.read()))
    assert all(os.waitpid(process, 0)[1] == 0 for process in workers)
    client.close()
    server.stdin.close()
    server.wait()
    failed = {kind: count for kind, count in total.items() if kind.startswith("failed")}
    print(json.dumps({"answered": total["answered"], "wrong": total["wrong"], "failed": failed}))  # noqa: T201


if __name__ == "__main__":
    main()
