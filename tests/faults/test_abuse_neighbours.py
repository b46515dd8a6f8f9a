"""One hostile request in ten, and every good answer is still the one that it was."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from diptych_serving.server import Server
from tests.helpers.bombs import BOMBS
from tests.helpers.hostile_inputs import hostile_items
from tests.helpers.raw_wire import Item, Refused, ask_over_grpc, ask_over_http, grpc_channel

NUM_CALLERS = 8
NUM_CALLS = 400
COMPANY = 1e-5  # batches of other sizes add the same numbers in another order
# The largest are left to tests/serving/test_abuse_bombs.py: sending them would take most of the time here.
MAX_BYTES = 2_000_000


def test_no_good_answer_changes(server: Server, items: list[Item]) -> None:
    bombs = [(data, b"") for data in (make() for make in BOMBS.values()) if len(data) < MAX_BYTES]
    refused = [(item.image, item.text) for item in hostile_items() if len(item.image) < MAX_BYTES]
    shuffled = random.Random(0)
    schedule: list[tuple[int | None, Item]] = []
    for number in range(NUM_CALLS):
        index = shuffled.randrange(len(items))
        hostile = shuffled.choice([*bombs, *refused])
        schedule.append((None, hostile) if number % 10 == 0 else (index, items[index]))

    with grpc_channel(server) as channel:
        normal = [ask_over_grpc(channel, *item) for item in items]

        def call(number: int) -> None:
            index, item = schedule[number]
            try:
                found = ask_over_grpc(channel, *item) if number % 3 else ask_over_http(server, *item)
            except Refused:
                assert index is None
                return
            if index is not None:
                np.testing.assert_allclose(found, normal[index], rtol=0, atol=COMPANY)

        with ThreadPoolExecutor(NUM_CALLERS) as pool:
            list(pool.map(call, range(NUM_CALLS)))
