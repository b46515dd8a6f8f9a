"""More than a server can take: what is accepted is answered, the rest refused at once, and nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from serving_process import wait_for
from tiny_repository import TinyImageEncoder, build_tiny_repository, script_to
from torch import Tensor
from traffic import NO_RETRIES

from diptych.serving import Server
from diptych_client import Answer, AsyncClient, Client, DeadlineExceeded, DiptychError, Overloaded

NUM_AT_ONCE = 1500  # twice and more of what all queues hold
NUM_STORM_CALLS, STORM_CONCURRENCY = 1000, 64


class SlowImageEncoder(TinyImageEncoder):
    """Tens of milliseconds a batch, as a real one."""

    def forward(self, pixel_values: Tensor, image_present: Tensor) -> Tensor:
        colour = pixel_values.float().mean(dim=[2, 3]) / 255
        busy = torch.ones(256, 256) * (1 + colour.mean())  # of an input, or freezing would work it out
        for _ in range(80):
            busy = torch.mm(busy, busy).clamp(0.0, 1.0)
        features = (colour + 0 * busy.mean()).repeat(1, 171)[:, :512]
        return torch.where(image_present, features, torch.zeros_like(features))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose batches are small and slow, so that its queues fill up."""
    repository = build_tiny_repository(tmp_path_factory.mktemp("overload") / "model_repository")
    script_to(repository / "image_encoder/1/model.pt", SlowImageEncoder())
    for config in repository.glob("*/config.pbtxt"):
        text = re.sub(r"^max_batch_size: \d+", "max_batch_size: 4", config.read_text(), flags=re.MULTILINE)
        config.write_text(re.sub(r"batch_size: 8\b", "batch_size: 4", text))
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        server.wait_until_ready()
        yield server


def pending(server: Server) -> float:
    """Requests that are in some queue."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.metrics_url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("nv_inference_pending_request_count{")
    )


def num_sockets(server: Server) -> int:
    """Of the server's process."""
    num = 0
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            num += os.readlink(descriptor).startswith("socket:")
    return num


def is_well(server: Server) -> bool:
    with Client(server.grpc_url, timeout_s=30) as grpc, Client(server.http_url, timeout_s=30) as http:
        answers = [client.classify(text="a red cat") for client in (grpc, http)]
    assert answers[0].probabilities == pytest.approx(answers[1].probabilities)
    return wait_for(lambda: pending(server) == 0)


def test_a_full_queue_refuses_and_what_is_accepted_is_answered(narrow: Server) -> None:
    async def call(client: AsyncClient) -> Answer | DiptychError:
        try:
            return await client.classify(text="a red cat")
        except DiptychError as error:
            return error

    async def call_all() -> list[Answer | DiptychError]:
        async with AsyncClient(narrow.grpc_url, timeout_s=60, retries=NO_RETRIES) as client:
            await client.classify(text="a red cat")
            return await asyncio.gather(*(call(client) for _ in range(NUM_AT_ONCE)))

    outcomes = asyncio.run(call_all())
    assert {type(outcome) for outcome in outcomes} == {Answer, Overloaded}
    refusals = {outcome.message for outcome in outcomes if isinstance(outcome, Overloaded)}
    assert all("Exceeds maximum queue size" in message for message in refusals), refusals
    assert is_well(narrow)


def test_a_storm_of_expiring_deadlines_leaves_the_server_as_it_was(narrow: Server) -> None:
    deadlines = random.Random(0)
    timeouts_s = [deadlines.uniform(0.001, 0.2) for _ in range(NUM_STORM_CALLS)]
    with Client(narrow.grpc_url, retries=NO_RETRIES) as client, ThreadPoolExecutor(STORM_CONCURRENCY) as pool:
        client.classify(text="a red cat", timeout_s=30)

        def call(timeout_s: float) -> type[Answer | DiptychError]:
            try:
                return type(client.classify(text="a red cat", timeout_s=timeout_s))
            except DiptychError as error:
                return type(error)

        kinds = Counter(pool.map(call, timeouts_s))
    assert kinds.total() == NUM_STORM_CALLS
    assert kinds.keys() <= {Answer, DeadlineExceeded, Overloaded}
    assert kinds[DeadlineExceeded] > 0
    assert is_well(narrow)


# Asks without end; killed from outside.
CALLER = """
import sys, threading
from diptych_client import Client
client = Client(sys.argv[1], timeout_s=60)
client.wait_until_ready()
def call():
    while True:
        try:
            client.classify(text="a red cat")
        except Exception:
            pass
threads = [threading.Thread(target=call) for _ in range(16)]
for thread in threads: thread.start()
print("calling", flush=True)
"""


def test_clients_that_vanish_in_mid_request_leave_no_connection_behind(narrow: Server) -> None:
    assert is_well(narrow)
    before = num_sockets(narrow)
    body = json.dumps(
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a red cat"]}]}
    ).encode()
    head = b"POST /v2/models/classifier/infer HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n"
    for sent in (body[:10], body):  # half a request; a whole one, whose answer nobody waits for
        for _ in range(20):
            with socket.create_connection((narrow.contact, narrow.ports.http)) as connection:
                connection.sendall(head % len(body) + sent)
                # Close with a reset, as a process that dies does.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for url in (narrow.grpc_url, narrow.http_url):
        with subprocess.Popen(
            [sys.executable, "-c", CALLER, url], stdout=subprocess.PIPE, text=True
        ) as caller:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "calling\n"
            caller.send_signal(signal.SIGKILL)
    assert is_well(narrow)
    assert wait_for(lambda: num_sockets(narrow) <= before)


def test_after_all_that_it_ends_in_good_order(narrow: Server) -> None:
    """A request that it still counted would make it wait, and end with status 1."""
    assert narrow.stop() == 0
