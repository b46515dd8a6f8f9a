"""What is sent again, when, and when no more; headers, which go along each time."""

from __future__ import annotations

import pytest

import diptych_client
from diptych_client import (
    Client,
    DeadlineExceeded,
    DiptychError,
    InvalidInput,
    ModelNotReady,
    Overloaded,
    Retries,
)
from diptych_client._errors import ConnectionFailed
from diptych_client._retries import DEFAULT_MAX_ATTEMPTS, Deadline, RetryBudget
from tests.client.fake_triton import Failure, FakeTriton, Received

FULL = Failure("UNAVAILABLE", 503, "in ensemble 'classifier', Exceeds maximum queue size")
STOPPING = Failure(
    "UNAVAILABLE", 503, "Server is stopping, scheduler for model has stopped accepting new inf"
)
EXPIRED = Failure("UNAVAILABLE", 503, "Request timeout expired")
BAD = Failure("INVALID_ARGUMENT", 400, "preprocess: text: found nothing; accepted: something")
BROKEN = Failure("INTERNAL", 500, "stub process died")
QUICK = Retries(first_pause_s=0.001, last_pause_s=0.001)


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, triton: FakeTriton) -> str:
    return triton.urls[request.param]


@pytest.mark.parametrize("failure", [FULL, STOPPING, EXPIRED])
def test_a_request_that_was_refused_for_now_is_sent_again_under_its_id(
    triton: FakeTriton, url: str, failure: Failure
):
    triton.failures = [failure, failure]
    with Client(url) as client:
        answer = client.classify(text="words")
    assert answer.timings.num_attempts == 3
    assert triton.received[0].request_id == answer.request_id


def test_a_queue_that_outlasted_the_callers_own_deadline_is_not_joined_again(triton: FakeTriton, url: str):
    triton.failure = EXPIRED
    with Client(url) as client, pytest.raises(DeadlineExceeded):
        client.classify(text="words", timeout_s=0.1)
    assert triton.num_failures <= 1


@pytest.mark.parametrize("failure", [BAD, BROKEN])
def test_what_another_attempt_cannot_mend_is_sent_once(triton: FakeTriton, url: str, failure: Failure):
    triton.failures = [failure]
    with Client(url) as client, pytest.raises(DiptychError):
        client.classify(text="words")
    assert (triton.num_failures, triton.received) == (1, [])


def test_attempts_are_limited(triton: FakeTriton, url: str):
    triton.failure = FULL
    with Client(url, retries=Retries(max_attempts=3)) as client, pytest.raises(Overloaded):
        client.classify(text="words")
    assert triton.num_failures == 3


def test_a_pause_that_would_outlast_the_deadline_is_not_made(triton: FakeTriton, url: str):
    triton.failure = FULL
    retries = Retries(max_attempts=100, first_pause_s=1000, last_pause_s=1000)
    with Client(url, retries=retries) as client, pytest.raises(Overloaded):
        client.classify(text="words", timeout_s=1)


def test_a_server_on_its_knees_gets_no_more_than_the_budget(triton: FakeTriton, url: str):
    triton.failure = STOPPING
    with Client(url, retries=Retries(budget=5, first_pause_s=0.001)) as client:
        for _ in range(20):
            with pytest.raises(ModelNotReady):
                client.classify(text="words")
    assert triton.num_failures == 20 + 4  # five failures paid; one of them was the end of its call


def test_answers_refill_the_budget():
    budget = RetryBudget(Retries(budget=1, refill=0.5))
    deadline = Deadline(60)

    def pause_s() -> float | None:
        return budget.pause_s(ConnectionFailed("gone"), 1, deadline, has_other_server=False)

    assert pause_s() is not None
    assert pause_s() is None
    for _ in range(3):
        budget.report_answer()
    assert pause_s() is None  # 1.5 - 1 tokens of 2 are less than half
    for _ in range(4):
        budget.report_answer()
    assert pause_s() is not None


def test_pauses_are_spread_from_nothing_to_a_limit_that_doubles():
    retries = Retries(max_attempts=10, budget=10_000)
    budget, deadline = RetryBudget(retries), Deadline(60)
    for num_attempts, limit_s in ((1, 0.1), (2, 0.2), (3, 0.4), (9, 2.0)):
        pauses_s = [budget.pause_s(Overloaded("full"), num_attempts, deadline, False) for _ in range(300)]
        assert 0 <= min(pauses_s) < 0.1 * limit_s
        assert 0.9 * limit_s < max(pauses_s) <= limit_s


def test_another_server_is_asked_at_once_unless_this_one_is_merely_busy():
    budget, deadline = RetryBudget(Retries()), Deadline(60)
    assert budget.pause_s(ConnectionFailed("gone"), 1, deadline, has_other_server=True) == 0
    assert max(budget.pause_s(Overloaded("full"), 1, deadline, True) for _ in range(20)) > 0


def test_who_goes_away_between_an_answer_and_its_labels_is_replaced_by_another_server(
    triton: FakeTriton, url: str
):
    leaves_after_the_answer = [None, *[STOPPING] * DEFAULT_MAX_ATTEMPTS]
    with FakeTriton().running() as leaving:
        leaving.failures = leaves_after_the_answer
        leaving_url = leaving.urls[url.partition(":")[0]]
        triton.scores = [0.25, 0.5, 0.125, 0.125]
        with Client([url, leaving_url], retries=QUICK) as client:
            answer = client.classify(text="words")
    assert len(leaving.received) == 1  # it was asked first, and answered
    assert leaving.num_failures == DEFAULT_MAX_ATTEMPTS
    assert list(answer.probabilities.values()) == triton.scores
    assert len({received.request_id for received in triton.received}) == 2  # the item again, and the labels


def test_where_there_is_no_other_server_the_labels_failure_is_the_calls(triton: FakeTriton, url: str):
    triton.failures = [None, *[STOPPING] * DEFAULT_MAX_ATTEMPTS]
    with Client(url, retries=QUICK) as client:
        with pytest.raises(ModelNotReady, match="Server is stopping"):
            client.classify(text="words")
        assert client.classify(text="words").label == "clothing"  # nothing half known was kept


def test_a_model_that_is_replaced_between_an_answer_and_its_labels_is_asked_again(url: str):
    class Replaced(FakeTriton):
        def answer(self, request: Received) -> tuple[str, int, bytes]:
            if request.num_classes:
                self.model_version, self.labels = "2", ["a", "b", "c", "d"]
            return super().answer(request)

    with Replaced().running() as replaced, Client(replaced.urls[url.partition(":")[0]]) as client:
        answer = client.classify(text="words")
    assert (answer.model_version, list(answer.probabilities)) == ("2", ["a", "b", "c", "d"])
    assert [received.num_classes > 0 for received in replaced.received] == [False, True, False]


def test_health_is_asked_once_and_holds_the_error(triton: FakeTriton, url: str):
    triton.failure = FULL
    with Client(url) as client:
        health = client.health(deep=True)
    assert not health.is_healthy
    assert isinstance(health.error, Overloaded)
    assert triton.num_failures == 1


def test_waiting_goes_on_until_an_inference_is_answered(triton: FakeTriton, url: str):
    triton.failures = [STOPPING, FULL]
    with Client(url) as client:
        client.wait_until_ready(timeout_s=30)
    assert triton.num_failures == 2


def test_waiting_in_vain_says_what_was_in_the_way(triton: FakeTriton, url: str):
    triton.failure = STOPPING
    with (
        Client(url) as client,
        pytest.raises(
            diptych_client.DeadlineExceeded, match=r"^not ready within 0\.5 s; at last: .*Server is stopping"
        ),
    ):
        client.wait_until_ready(timeout_s=0.5)


def test_headers_go_with_every_request(triton: FakeTriton, url: str):
    with Client(url, headers={"Authorization": "Bearer the-token", "x-team": "shop"}) as client:
        client.classify(text="words")
    for received in triton.received:
        assert received.headers["authorization"] == "Bearer the-token"
        assert received.headers["x-team"] == "shop"


def test_a_function_renews_headers_for_every_request(triton: FakeTriton, url: str):
    tokens = iter(f"token-{number}" for number in range(10))
    with Client(url, headers=lambda: {"authorization": next(tokens)}) as client:
        client.classify(text="words")
        client.classify(text="words")
    sent = [received.headers["authorization"] for received in triton.received]
    assert sent == ["token-0", "token-1", "token-2"]


def test_a_secret_that_the_server_repeats_is_struck_out(triton: FakeTriton, url: str):
    triton.failure = Failure("INTERNAL", 500, "no such token: the-token")
    with Client(url, headers={"authorization": "Bearer the-token"}) as client:
        with pytest.raises(diptych_client.ServerFault, match=r"no such token: \*\*\*") as caught:
            client.classify(text="words")
        assert "the-token" not in repr(client)
    assert "the-token" not in repr(caught.value.args)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"Content-Length": "3"}, "the name 'Content-Length'"),
        ({"grpc-timeout": "1S"}, "the name 'grpc-timeout'"),
        ({"a b": "secret"}, "the name 'a b'"),
        ({"x-key": "secret\r\nx-other: 1"}, "a value of 'x-key' that is not"),
        ({"x-key": b"secret"}, "a value of 'x-key' that is not"),
        ([("x-key", "secret")], "list"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_without_their_values(headers: object, found: str):
    with pytest.raises(InvalidInput, match=f"^headers: found {found}") as caught:
        Client("grpc://127.0.0.1", headers=headers)
    assert "secret" not in str(caught.value)
