"""Odd and hostile items in the middle of good ones: each gets its own outcome, and no other is touched."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.evaluation.predict import predict
from diptych.runs.run import Run
from diptych_client import Client, InvalidInput, Limits
from diptych_serving.repository.golden import Ask
from diptych_serving.server import Server
from tests.helpers.hostile_inputs import HostileItem, OddItem, hostile_items, odd_items
from tests.helpers.raw_wire import (
    Item,
    Refused,
    ask_over_grpc,
    ask_over_http,
    grpc_channel,
    tells_of_our_insides,
)

ODD = odd_items()
HOSTILE = hostile_items()
NUM_GOOD = 12
NUM_BAD = 2
COMPANY = 1e-5  # batches of other sizes add the same numbers in another order


@pytest.fixture(scope="module", params=["grpc", "http"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ask(server: Server, wire: str) -> Iterator[Ask]:
    """Asks past the client, which would refuse some of these items itself."""
    if wire == "http":
        yield functools.partial(ask_over_http, server)
        return
    with grpc_channel(server) as channel:
        yield functools.partial(ask_over_grpc, channel)


@pytest.fixture(scope="module")
def client(server: Server, wire: str) -> Iterator[Client]:
    """One that leaves it to the server to refuse."""
    limits = Limits(**{field.name: 2**40 for field in dataclasses.fields(Limits)})
    with Client(getattr(server, f"{wire}_url"), timeout_s=30, limits=limits) as client:
        yield client


@pytest.fixture(scope="module")
def normal_answers(ask: Ask, items: list[Item]) -> list[NDArray[np.float32]]:
    return [ask(*item) for item in items]


def among_good_ones(
    ask: Ask, items: list[Item], normal: list[NDArray[np.float32]], item: Item
) -> list[Future[NDArray[np.float32]]]:
    """Send an item several times, all at once with good ones; check the good ones; return the others."""
    num_calls = NUM_GOOD + NUM_BAD
    start_line = threading.Barrier(num_calls)

    def call(image: bytes, text: bytes) -> NDArray[np.float32]:
        start_line.wait(timeout=30)
        return ask(image, text)

    with ThreadPoolExecutor(num_calls) as pool:
        calls = [pool.submit(call, *(items[number] if number % 7 else item)) for number in range(num_calls)]
    for number, done in enumerate(calls):
        if number % 7:
            np.testing.assert_allclose(done.result(), normal[number], rtol=0, atol=COMPANY)
    bad = calls[::7]
    assert len(bad) == NUM_BAD
    return bad


def named(items: list[Any]) -> Callable[[Callable[..., None]], Any]:
    return pytest.mark.parametrize("item", items, ids=[item.name for item in items])


@named(ODD)
def test_an_odd_item_is_answered_as_its_plain_counterpart_and_good_ones_in_flight_are_not_touched(
    ask: Ask, items: list[Item], normal_answers: list[NDArray[np.float32]], tiny_run: Run, item: OddItem
) -> None:
    expected = ask(item.plain_image, item.plain_text)
    for call in among_good_ones(ask, items, normal_answers, (item.image, item.text)):
        np.testing.assert_allclose(call.result(), expected, rtol=0, atol=COMPANY)
    eager = predict(tiny_run, item.image, item.text.decode())
    np.testing.assert_allclose(expected, [eager[label] for label in tiny_run.labels], rtol=0, atol=1e-5)


@named(HOSTILE)
def test_a_hostile_item_is_refused_with_its_reason_and_good_ones_in_flight_are_not_touched(
    ask: Ask, wire: str, items: list[Item], normal_answers: list[NDArray[np.float32]], item: HostileItem
) -> None:
    for call in among_good_ones(ask, items, normal_answers, (item.image, item.text)):
        with pytest.raises(Refused, match=f"^{item.message}$") as caught:
            call.result()
        assert caught.value.status == {"grpc": "INVALID_ARGUMENT", "http": "400"}[wire]
        assert not tells_of_our_insides(str(caught.value))


@named([item for item in HOSTILE if item.image and item.name != "invalid UTF-8"])  # which no str can hold
def test_the_client_raises_the_servers_reason_as_invalid_input(client: Client, item: HostileItem) -> None:
    with pytest.raises(InvalidInput, match=f"^{item.message}") as caught:
        client.classify(image=item.image, text=item.text.decode())
    assert caught.value.field == item.message.split(": ")[1]
    assert caught.value.request_id


def test_an_empty_file_never_leaves_the_client(client: Client, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(InvalidInput, match=r"image: found '.*empty.jpg', an empty file; accepted: an enc"):
        client.classify(image=empty, text="a leaf")


def test_the_server_answers_on_after_all_of_them_at_once(
    ask: Ask, items: list[Item], normal_answers: list[NDArray[np.float32]]
) -> None:
    hostile = [(item.image, item.text) for item in HOSTILE]
    odd = [(item.image, item.text) for item in ODD]

    def call(item: Item) -> NDArray[np.float32] | Refused:
        try:
            return ask(*item)
        except Refused as refused:
            return refused

    with ThreadPoolExecutor(len(hostile) + len(odd)) as pool:
        outcomes = list(pool.map(call, [*hostile, *odd] * 2))
    assert [isinstance(outcome, Refused) for outcome in outcomes] == (
        [True] * len(hostile) + [False] * len(odd)
    ) * 2
    for item, expected in zip(items, normal_answers, strict=True):
        np.testing.assert_allclose(ask(*item), expected, rtol=0, atol=COMPANY)
