"""The double for callers' tests: real clients, and answers that the test gives."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diptych_client import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidInput,
    ModelNotReady,
    Overloaded,
    Retries,
)
from diptych_client.testing import FakeRequest, FakeServer

LABELS = ("food", "tools", "plants")


def test_each_item_is_answered_with_what_the_test_gives():
    fake = FakeServer(LABELS)
    with fake.client() as client:
        assert client.classify(text="apple").label == "food"  # by default the first label
        fake.answer = "plants"
        assert client.classify(text="apple").probabilities == {"food": 0, "tools": 0, "plants": 1}
        fake.answer = {"tools": 0.5}
        answer = client.classify(text="apple")
        assert answer.probabilities == {"food": 0.25, "tools": 0.5, "plants": 0.25}
        assert (answer.label, answer.score, answer.model_version) == ("tools", 0.5, "1")


def test_a_function_sees_each_request_as_it_would_have_been_sent(tmp_path: Path):
    picture = tmp_path / "apple.png"
    picture.write_bytes(b"a picture")

    def answer(request: FakeRequest) -> str:
        return "food" if request.image == b"a picture" and request.text == "äpple" else "tools"

    fake = FakeServer(LABELS, answer)
    with fake.client() as client:
        found = client.classify(picture, "äpple")
        assert found.label == "food"
        assert client.classify(text="hammer").label == "tools"
    assert [(request.image, request.text) for request in fake.requests] == [
        (b"a picture", "äpple"),
        (b"", "hammer"),
    ]
    assert fake.requests[0].request_id == found.request_id


def test_an_error_is_raised_by_every_call_and_not_sent_again():
    fake = FakeServer(LABELS, Overloaded("the queue is full"))
    with fake.client() as client:
        for _ in range(2):
            with pytest.raises(Overloaded, match=r"^the queue is full \[request [0-9a-f]{32}\]$"):
                client.classify(text="apple")
    assert len(fake.requests) == 2
    assert fake.answer.request_id is None  # what the test holds is left as it was


def test_an_error_in_between_is_retried_where_the_test_asks_for_it():
    outcomes = iter([ConnectionFailed("cut off"), "tools"])
    fake = FakeServer(LABELS, lambda request: next(outcomes))
    with fake.client(retries=Retries(max_attempts=2, first_pause_s=0.001)) as client:
        answer = client.classify(text="apple")
    assert (answer.label, answer.timings.num_attempts) == ("tools", 2)


def test_a_function_may_raise_what_it_likes():
    def answer(request: FakeRequest) -> str:
        if request.text == "apple":
            raise ModelNotReady("loading")
        raise LookupError(request.text)

    with FakeServer(LABELS, answer).client() as client:
        with pytest.raises(ModelNotReady, match="loading"):
            client.classify(text="apple")
        with pytest.raises(LookupError, match="pear"):
            client.classify(text="pear")


def test_items_are_checked_as_they_are_for_a_real_server():
    fake = FakeServer(LABELS)
    with fake.client() as client, pytest.raises(InvalidInput, match="both empty"):
        client.classify(text=" ")
    assert fake.requests == []


def test_an_answer_that_takes_too_long_exceeds_the_deadline():
    fake = FakeServer(LABELS, lambda request: time.sleep(0.05) or "food")
    with fake.client() as client, pytest.raises(DeadlineExceeded, match=r"no answer within 0\.01 s"):
        client.classify(text="apple", timeout_s=0.01)


def test_many_items_explanations_labels_and_scores_work_as_with_a_server():
    def answer(request: FakeRequest) -> str:
        return "food" if request.image else "tools"

    with FakeServer(LABELS, answer).client(min_score=0.5) as client:
        assert client.labels() == LABELS
        explanation = client.classify(b"apple", "hammer", explain=True).explanation
        assert explanation is not None
        assert (explanation.image_only.label, explanation.text_only.label) == ("food", "tools")
        assert explanation.decided_by == "image"
        assert len(list(client.classify_many([{"text": "apple"}] * 3))) == 3


def test_a_new_release_may_bring_other_labels():
    fake = FakeServer(LABELS)
    with fake.client() as client:
        client.classify(text="apple")
        fake.labels, fake.answer, fake.model_version = ("kitchen", "garden"), "kitchen", "2"
        answer = client.classify(text="apple")
    assert (answer.label, answer.model_version) == ("kitchen", "2")


def test_health_follows_the_answer_and_asks_no_function():
    fake = FakeServer(LABELS, lambda request: pytest.fail("asked"))
    with fake.client() as client:
        client.wait_until_ready(timeout_s=1)
        assert client.health().is_healthy
        assert client.health(deep=True).is_healthy
        assert client.server_info().name == "fake"
        fake.answer = ModelNotReady("loading")
        assert not client.health().is_healthy
        assert not client.health(deep=True).is_healthy
        fake.answer = ConnectionFailed("no server")
        assert "no server" in str(client.health().error)
    assert fake.requests == []


def test_the_asynchronous_twin_is_answered_alike_and_its_loop_is_not_held_up():
    fake = FakeServer(LABELS, lambda request: time.sleep(0.05) or "tools")

    async def ask() -> list[str]:
        async with fake.async_client() as client:
            calls = asyncio.gather(*(client.classify(text=text) for text in ("apple", "pear")))
            await asyncio.sleep(0)
            assert not calls.done()
            return [answer.label for answer in await calls]

    assert asyncio.run(ask()) == ["tools", "tools"]
    assert sorted(request.text for request in fake.requests) == ["apple", "pear"]


@pytest.mark.parametrize("labels", ["food", [], ["food", "food"]])
def test_labels_that_no_model_has_are_refused(labels: object):
    with pytest.raises(ValueError, match=r"^labels: found .*; accepted: a sequence of different labels$"):
        FakeServer(labels)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("fruit", "found 'fruit'; accepted: a label or probabilities of food, tools, plants"),
        ({"fruit": 1.0}, "found {'fruit': 1.0}; accepted: a label"),
        (None, "found None; accepted: a label"),
        ({"food": 0.9, "tools": 0.2}, "accepted: probabilities from 0 to 1 that sum to 1"),
        ({"food": 0.2, "tools": 0.2, "plants": 0.2}, "accepted: probabilities from 0 to 1 that sum to 1"),
        ({"food": 1.5, "tools": -0.5}, "accepted: probabilities from 0 to 1 that sum to 1"),
        ({"food": float("nan")}, "accepted: probabilities from 0 to 1 that sum to 1"),
    ],
)
def test_an_answer_that_no_model_gives_is_refused(answer: object, message: str):
    fake = FakeServer(LABELS, lambda request: answer)
    with fake.client() as client, pytest.raises(ValueError, match=f"^answer: .*{message}"):
        client.classify(text="apple")


def test_the_double_needs_no_torch_and_opens_no_socket():
    code = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.create_connection = refuse
from diptych_client.testing import FakeServer
with FakeServer(["food"]).client() as client:
    print(client.classify(text="apple").label, {"torch", "grpc"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "food set()\n", done.stderr
