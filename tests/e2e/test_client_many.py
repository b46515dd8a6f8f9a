"""`classify_many` against the real server: in order, bounded, and no item's trouble is another's."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from diptych_client import AsyncClient, Client, InvalidInput, Outcome
from diptych_serving.server import Server
from tests.helpers.raw_wire import Item

CONCURRENCY = 4
HELD = 2 * CONCURRENCY


@dataclasses.dataclass
class Product:
    """A caller's own record."""

    sku: str
    text: str
    image: bytes | None = None


@pytest.fixture(params=["grpc", "http"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(getattr(server, f"{request.param}_url"), timeout_s=30) as client:
        yield client


def as_mappings(items: list[Item]) -> list[dict[str, object]]:
    return [
        {"image": image or None, "text": text.decode(), "sku": number}
        for number, (image, text) in enumerate(items)
    ]


def client_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("diptych-client")]


def test_answers_come_in_the_order_of_the_items(client: Client, items: list[Item]) -> None:
    given = as_mappings(items)
    one_by_one = [client.classify(item["image"], item["text"]).probabilities for item in given]
    outcomes = list(client.classify_many(given))
    assert [outcome.index for outcome in outcomes] == list(range(len(given)))
    for outcome, expected in zip(outcomes, one_by_one, strict=True):
        assert outcome.answer is not None
        assert outcome.answer.probabilities == pytest.approx(expected, abs=1e-5)


def test_a_bad_item_yields_its_error_in_its_place(client: Client, tmp_path: Path) -> None:
    good = Product("1", "a leaf")
    outcomes = list(
        client.classify_many(
            [
                good,
                Product("2", "", b"not a picture"),
                good,
                {"picture": b"", "words": ""},
                {"image": tmp_path / "none.png"},
                ("image", "text"),
                good,
            ]
        )
    )
    assert [outcome.error is None for outcome in outcomes] == [
        True,
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    found = [str(outcome.error) for outcome in outcomes if isinstance(outcome.error, InvalidInput)]
    assert "found 13 bytes in no known format" in found[0]
    assert "found a mapping with the keys ['picture', 'words']; accepted: a mapping with the keys" in found[1]
    assert "No such file" in found[2]
    assert "found tuple" in found[3]


def test_a_kept_error_does_not_keep_the_picture(client: Client) -> None:
    ((_, error),) = [(outcome.index, outcome.error) for outcome in client.classify_many([{"image": b"no"}])]
    while error is not None:
        assert error.__traceback__ is None
        error = error.__cause__ or error.__context__


def test_an_endless_source_is_taken_only_as_far_as_needed(client: Client) -> None:
    taken = itertools.count()
    source = ({"text": f"leaf {next(taken)}"} for _ in itertools.count())
    with contextlib.closing(client.classify_many(source, concurrency=CONCURRENCY)) as outcomes:
        for _ in range(20):
            assert next(outcomes).error is None
    assert next(taken) <= 20 + HELD


def test_a_consumer_that_stops_early_leaves_no_thread_behind(client: Client) -> None:
    for _ in client.classify_many(({"text": "leaf"} for _ in itertools.count()), concurrency=CONCURRENCY):
        assert client_threads()
        break
    assert client_threads() == []


def test_a_source_that_breaks_leaves_no_thread_behind(client: Client) -> None:
    def source() -> Iterator[dict[str, str]]:
        yield {"text": "leaf"}
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(client.classify_many(source()))
    assert client_threads() == []


def test_a_concurrency_that_is_none_is_refused_before_anything_is_taken(client: Client) -> None:
    with pytest.raises(InvalidInput, match="concurrency: found 0; accepted: a number of calls, 1 or more"):
        client.classify_many([], concurrency=0)


def test_without_a_server_every_item_yields_its_own_error() -> None:
    with Client("grpc://127.0.0.1:9", timeout_s=0.2) as client:
        outcomes = list(client.classify_many([{"text": "leaf"}] * 3))
    assert len(outcomes) == 3
    assert all(outcome.error and not isinstance(outcome.error, InvalidInput) for outcome in outcomes)


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_the_asynchronous_twin_answers_the_same(server: Server, items: list[Item], transport: str) -> None:
    given = [*as_mappings(items), {"image": b"not a picture"}]
    url = getattr(server, f"{transport}_url")

    async def source() -> AsyncIterator[dict[str, object]]:
        for item in given:
            yield item

    async def ask() -> tuple[list[Outcome], list[Outcome]]:
        async with AsyncClient(url, timeout_s=30) as client:
            from_list = [outcome async for outcome in client.classify_many(given)]
            from_stream = [outcome async for outcome in client.classify_many(source(), concurrency=2)]
        return from_list, from_stream

    with Client(url, timeout_s=30) as client:
        expected = list(client.classify_many(given))
    for outcomes in asyncio.run(ask()):
        assert len(outcomes) == len(expected)
        assert isinstance(outcomes[-1].error, InvalidInput)
        for outcome, wanted in zip(outcomes[:-1], expected[:-1], strict=True):
            assert outcome.answer.probabilities == pytest.approx(wanted.answer.probabilities, abs=1e-5)


def test_an_asynchronous_consumer_that_stops_early_leaves_no_task_behind_the_client(server: Server) -> None:
    taken = itertools.count()

    async def ask() -> set[asyncio.Task[object]]:
        before = asyncio.all_tasks()
        async with AsyncClient(server.grpc_url, timeout_s=30) as client:
            source = ({"text": f"leaf {next(taken)}"} for _ in itertools.count())
            async with contextlib.aclosing(client.classify_many(source, concurrency=CONCURRENCY)) as outcomes:
                async for outcome in outcomes:
                    assert outcome.error is None
                    break
        return asyncio.all_tasks() - before

    assert asyncio.run(ask()) == set()
    assert next(taken) <= 1 + HELD
