"""`classify_many` in every setting: the order, the index, the arguments, and that no answer waits in vain."""

from __future__ import annotations

import asyncio
import threading
import typing
from collections.abc import AsyncIterator, Iterator

import pytest

import diptych_client
from diptych_client import Answer, AsyncClient, Client, InvalidInput, Item, Outcome, Overloaded
from diptych_client.testing import FakeRequest, FakeServer

LABELS = ("food", "tools")


def texts(*names: str) -> list[Item]:
    return [{"text": name} for name in names]


async def collect(outcomes: AsyncIterator[Outcome]) -> list[Outcome]:
    return [outcome async for outcome in outcomes]


def both_ways(fake: FakeServer, items: list[Item], **options: typing.Any) -> list[list[Outcome]]:
    """The outcomes of the blocking client and of its asynchronous twin."""

    async def ask() -> list[Outcome]:
        async with fake.async_client() as client:
            return await collect(client.classify_many(items, **options))

    with fake.client() as client:
        return [list(client.classify_many(items, **options)), asyncio.run(ask())]


def test_each_outcome_has_the_index_of_its_item_and_either_an_answer_or_an_error():
    def answer(request: FakeRequest) -> str | Overloaded:
        return Overloaded("the queue is full") if request.text == "pear" else "food"

    for outcomes in both_ways(FakeServer(LABELS, answer), [*texts("apple", "pear"), {}, *texts("plum")]):
        assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3]
        assert [type(outcome.error) for outcome in outcomes] == [
            type(None),
            Overloaded,
            InvalidInput,
            type(None),
        ]
        assert [outcome.answer is None for outcome in outcomes] == [False, True, True, False]


def test_time_score_and_explanation_are_those_of_every_item():
    fake = FakeServer(LABELS, {"food": 0.6, "tools": 0.4})
    items: list[Item] = [{"image": b"an image", "text": "apple"}] * 2
    for outcomes in both_ways(fake, items, min_score=0.7, explain=True, timeout_s=30):
        for outcome in outcomes:
            assert outcome.answer is not None
            assert (outcome.answer.label, outcome.answer.score) == (None, pytest.approx(0.6))
            assert outcome.answer.explanation is not None
            assert outcome.answer.explanation.decided_by == "either"


def test_each_item_has_a_deadline_of_its_own():
    gone = threading.Event()
    fake = FakeServer(LABELS, lambda request: "tools" if gone.wait(0.2) else "food")
    for outcomes in both_ways(fake, texts("apple", "pear"), timeout_s=0.05):
        assert [str(outcome.error)[:25] for outcome in outcomes] == ["no answer within 0.05 s ["] * 2


def test_without_order_an_answer_does_not_wait_for_those_before_it():
    release = threading.Event()

    def answer(request: FakeRequest) -> str:
        if request.text == "slow":
            assert release.wait(30)
        return "food"

    def release_after(outcomes: Iterator[Outcome]) -> Iterator[int]:
        for number, outcome in enumerate(outcomes):
            if number == 2:
                release.set()  # only now, so that the first item is answered last
            yield outcome.index

    fake = FakeServer(LABELS, answer)
    with fake.client(timeout_s=30) as client:
        outcomes = client.classify_many(texts("slow", "a", "b", "c"), concurrency=2, ordered=False)
        indices = list(release_after(outcomes))
    assert sorted(indices) == [0, 1, 2, 3]
    assert indices[-1] == 0

    async def ask() -> list[int]:
        release.clear()
        found = []
        async with fake.async_client(timeout_s=30) as client:
            async for outcome in client.classify_many(
                texts("slow", "a", "b", "c"), concurrency=2, ordered=False
            ):
                found.append(outcome.index)
                if len(found) == 3:
                    release.set()
        return found

    indices = asyncio.run(ask())
    assert sorted(indices) == [0, 1, 2, 3]
    assert indices[-1] == 0


@pytest.mark.parametrize("ordered", [True, False])
def test_an_answer_does_not_wait_until_an_asynchronous_source_has_the_next_item(ordered: bool):
    async def ask() -> None:
        got_first = asyncio.Event()

        async def source() -> AsyncIterator[Item]:
            yield {"text": "apple"}
            await asyncio.wait_for(got_first.wait(), 30)  # else it would wait for ever
            yield {"text": "pear"}

        async with FakeServer(LABELS).async_client() as client:
            async for outcome in client.classify_many(source(), ordered=ordered):
                assert outcome.error is None
                got_first.set()

    asyncio.run(ask())


def test_an_asynchronous_source_is_resumed_by_one_task_alone():
    """Time limits and task groups around a `yield` need that."""
    tasks = []

    async def source() -> AsyncIterator[Item]:
        for number in range(5):
            tasks.append(asyncio.current_task())
            yield {"text": f"apple {number}"}
            await asyncio.sleep(0)

    async def ask() -> None:
        async with FakeServer(LABELS).async_client() as client:
            assert len(await collect(client.classify_many(source(), concurrency=1))) == 5

    asyncio.run(ask())
    assert len(set(tasks)) == 1


def test_an_asynchronous_source_that_breaks_raises_and_leaves_no_task_behind():
    async def source() -> AsyncIterator[Item]:
        yield {"text": "apple"}
        raise OSError("the disk is gone")

    async def ask() -> int:
        async with FakeServer(LABELS).async_client() as client:
            before = len(asyncio.all_tasks())
            with pytest.raises(OSError, match="the disk is gone"):
                await collect(client.classify_many(source()))
            return len(asyncio.all_tasks()) - before

    assert asyncio.run(ask()) == 0


def test_a_cancelled_consumer_leaves_no_task_behind():
    release = threading.Event()

    async def ask() -> int:
        fake = FakeServer(LABELS, lambda request: "food" if release.wait(30) else "tools")
        async with fake.async_client(timeout_s=30) as client:
            before = len(asyncio.all_tasks())
            consumer = asyncio.create_task(collect(client.classify_many(texts("apple", "pear"))))
            while len(fake.requests) < 2:
                await asyncio.sleep(0.001)
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
            left = len(asyncio.all_tasks()) - before
            release.set()
            return left

    assert asyncio.run(ask()) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency: found 0; accepted: a number of calls, 1 or more"),
        ({"concurrency": 1.5}, "concurrency: found 1.5; accepted"),
        ({"min_score": 2}, "min_score: found 2; accepted"),
        ({"timeout_s": 0}, "timeout_s: found 0; accepted"),
    ],
)
def test_bad_arguments_are_refused_before_an_item_is_taken(options: dict[str, typing.Any], message: str):
    taken: list[Item] = []
    items = (taken.append(item) or item for item in texts("apple"))
    fake = FakeServer(LABELS)
    with fake.client() as client, pytest.raises(InvalidInput, match=message):
        client.classify_many(items, **options)
    assert taken == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_types_of_all_public_methods_can_be_read(kind: type):
    for name, method in vars(kind).items():
        if callable(method) and (not name.startswith("_") or name in ("__init__", "__enter__", "__aenter__")):
            typing.get_type_hints(method)
    typing.get_type_hints(kind.__init__)
    assert typing.get_type_hints(Client.classify)["return"] is Answer


def test_the_types_of_all_exported_records_can_be_read():
    for name in diptych_client.__all__:
        exported = getattr(diptych_client, name)
        if isinstance(exported, type):
            typing.get_type_hints(exported)
            typing.get_type_hints(exported.__init__)
    assert set(typing.get_type_hints(Item)) == {"image", "text"}


def test_a_subclass_stays_itself_in_a_with_block():
    hints = typing.get_type_hints(Client.__enter__)
    assert hints["return"] == hints["self"]


def test_an_answer_is_made_in_a_line():
    answer = Answer.of({"food": 0.9, "tools": 0.1})
    assert (answer.label, answer.score, answer.top(1)[0].label) == ("food", 0.9, "food")
    assert Answer.of({"food": 0.6, "tools": 0.4}, min_score=0.7).label is None
    assert Answer("food", 0.9, {"food": 0.9, "tools": 0.1}).model_version == ""
