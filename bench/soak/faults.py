"""The faults. Each function injects one fault and returns after that."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from bench.served import ServedProcess
from bench.soak.callers import Known, Request, asking
from bench.soak.ledger import Ledger
from diptych_client import AsyncClient
from diptych_serving.errors import UserError
from diptych_serving.traffic import NO_RETRIES, Call, ClosedLoop, send_on_time, shared

STORM_CALLS, STORM_CONCURRENCY = 1000, 64
BURST_CALLS = 600
NUM_VANISHING, NUM_CALLERS = 40, 2
CALLER = """
import sys, threading
from diptych_client import Client
client = Client(sys.argv[1], timeout_s=60)
client.wait_until_ready(90)
def call():
    while True:
        client.classify(text="a red cat")
for _ in range(16):
    threading.Thread(target=call).start()
print("calling", flush=True)
"""


class Ends(enum.Enum):
    """Whether a fault ends the server, which then has to come back."""

    ALWAYS = enum.auto()
    PERHAPS = enum.auto()
    NEVER = enum.auto()


@dataclasses.dataclass(frozen=True)
class Fault:
    name: str
    inject: Callable[[], None]
    ends: Ends


class Faults:
    """harsh   what ends the server or one of its processes. Calls that are cancelled over gRPC, by a deadline
            or because their caller is gone, end tritonserver 2.51.0 now and then: docs/promises.md
    gentle  what the server has to survive
    """

    def __init__(self, served: ServedProcess, items: Sequence[Known], ledger: Ledger) -> None:
        self._served, self._items, self._ledger = served, items, ledger
        self._chance = random.Random(0)
        grpc_url, http_url = served.urls
        self._http_address = (urlsplit(http_url).hostname, urlsplit(http_url).port)
        self.harsh = [
            Fault("kill -9 of a stub", self._kill_stub, Ends.ALWAYS),
            Fault("kill -9 of tritonserver", self._kill_server, Ends.ALWAYS),
            Fault("SIGTERM, then a new start", self._drain_and_start, Ends.ALWAYS),
            Fault("clients vanish, gRPC", lambda: self._vanish(grpc_url), Ends.PERHAPS),
            Fault("a stub stopped (SIGSTOP)", self._stop_stub, Ends.ALWAYS),
        ]
        self.gentle = [
            Fault("storm of deadlines, gRPC", lambda: self._storm(grpc_url), Ends.NEVER),
            Fault("storm of deadlines, HTTP", lambda: self._storm(http_url), Ends.NEVER),
            Fault("full queue", self._burst, Ends.NEVER),
            Fault("clients vanish", lambda: self._vanish(http_url), Ends.NEVER),
        ]

    def _kill_stub(self) -> None:
        self._signal_stub(signal.SIGKILL)

    def _stop_stub(self) -> None:
        self._signal_stub(signal.SIGSTOP)

    def _signal_stub(self, signum: int) -> None:
        _, pid = self._chance.choice(sorted(self._served.stub_pids().items()))
        os.kill(pid, signum)

    def _kill_server(self) -> None:
        pid = self._served.triton_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def _drain_and_start(self) -> None:
        status, left = self._served.end()
        if status != 0 or left:
            raise UserError(f"SIGTERM ended in status {status} and left {left}: {self._served.output()}")
        self._served.start()

    def _storm(self, url: str) -> None:
        """Deadlines of 1 to 200 ms, most of which expire on the way."""
        requests = [
            Request(self._chance.choice(self._items), self._chance.uniform(0.001, 0.2))
            for _ in range(STORM_CALLS)
        ]
        with asking(url, NO_RETRIES) as ask:
            callers = [shared(ask)] * STORM_CONCURRENCY
            with ClosedLoop(callers, requests, num_calls=STORM_CALLS, keeps_results=False) as storm:
                storm.join()
        self._ledger.enter(storm.num_begun, storm.calls)

    def _burst(self) -> None:
        """More at once than the queues hold."""

        async def call_all() -> list[Call]:
            async with AsyncClient(self._served.urls[0], timeout_s=60, retries=NO_RETRIES) as client:

                async def ask(item: Known) -> None:
                    item.check(await client.classify(image=item.image or None, text=item.text or None))

                return await send_on_time(ask, chosen, [0.0] * BURST_CALLS)

        chosen = [self._chance.choice(self._items) for _ in range(BURST_CALLS)]
        self._ledger.enter(BURST_CALLS, asyncio.run(call_all()))

    def _vanish(self, url: str) -> None:
        """Half requests with a reset; then processes that die with calls in flight. These calls are in no
        ledger: the
        gauges show whether the server drops them."""
        for _ in range(NUM_VANISHING):
            with socket.create_connection(self._http_address) as connection:
                connection.sendall(
                    b"POST /v2/models/classifier/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
                )
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for _ in range(NUM_CALLERS):
            vanish(url)


def vanish(url: str) -> None:
    """A process of 16 callers, killed in the middle of their requests."""
    with subprocess.Popen([sys.executable, "-c", CALLER, url], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "calling\n"
        caller.kill()
