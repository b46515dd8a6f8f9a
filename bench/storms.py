"""A thousand calls whose deadlines expire. As a program: how many such storms over gRPC a server survives.

    python -m bench.storms 15

First with deadlines that gRPC itself keeps, as tritonclient leaves them, then with `diptych_client`. What is
served is the tiny repository of the tests with an image encoder as slow as a real one and a queue of eight,
which is always full. Four patient callers go on asking. A server that ended is started again.
"""

from __future__ import annotations

import functools
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from diptych_client import Client
from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.signals import end_in_order
from diptych_serving.traffic import NO_RETRIES, ClosedLoop, Send, classifying, outcomes, shared
from tests.helpers.tiny_repository import SlowImageEncoder, build_tiny_repository, script_to, write_manifest

NUM_CALLS, CONCURRENCY = 1000, 64
WORDS = "a red cat"
# The race is over a moment after the storm.
LOOK_AFTER_S = 1.0


def expire(send: Send[float]) -> Counter[str]:
    """send     makes one call, with its deadline in seconds
    returns  the types of what the calls returned or raised
    """
    chance = random.Random(0)
    timeouts_s = [chance.uniform(0.001, 0.2) for _ in range(NUM_CALLS)]
    with ClosedLoop(
        [shared(send)] * CONCURRENCY, timeouts_s, num_calls=NUM_CALLS, keeps_results=False
    ) as storm:
        storm.join()
    return outcomes(storm.calls)


@contextmanager
def diptych_asking(server: Server) -> Iterator[Send[float]]:
    with Client(server.grpc_url, retries=NO_RETRIES) as client:
        yield lambda timeout_s: client.classify(text=WORDS, timeout_s=timeout_s)


@contextmanager
def tritonclient_asking(server: Server) -> Iterator[Send[float]]:
    inputs = [
        triton.InferInput(name, [1, 1], "BYTES").set_data_from_numpy(np.array([[value]], np.object_))
        for name, value in (("image", b""), ("text", WORDS.encode()))
    ]
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as channel:
        yield lambda timeout_s: channel.infer(
            "classifier", inputs, client_timeout=timeout_s, timeout=int(1e6 * timeout_s)
        )


def main() -> None:
    end_in_order()
    num_storms = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory(prefix="diptych-storms-") as directory:
        repository = build_tiny_repository(Path(directory) / "model_repository")
        script_to(repository / "image_encoder/1/model.pt", SlowImageEncoder())
        config = repository / "preprocess/config.pbtxt"
        config.write_text(re.sub(r"max_queue_size: \d+", "max_queue_size: 8", config.read_text()))
        write_manifest(repository)
        for asking in (tritonclient_asking, diptych_asking):
            num_ended, left = 0, num_storms
            while left:
                with Server(repository, ServerConfig.on_free_ports()) as server:
                    server.wait_until_ready()
                    urls = 2 * [server.grpc_url, server.http_url]
                    patient = [functools.partial(classifying, url, retries=NO_RETRIES) for url in urls]
                    with ClosedLoop(patient, [(b"", WORDS)], keeps_results=False):
                        while left and server.process.poll() is None:
                            left -= 1
                            with asking(server) as ask:
                                expire(ask)
                            time.sleep(LOOK_AFTER_S)
                    num_ended += server.process.poll() is not None
            print(f"{asking.__name__}: {num_ended} of {num_storms} storms ended the server", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
