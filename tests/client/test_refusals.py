"""Failures name their cause: who may not ask, what is too large, who is busy, and what no retry mends."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from diptych_client import (
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    InvalidInput,
    NotAllowed,
    Overloaded,
    Retries,
)
from tests.client.fake_triton import Failure, FakeTriton

FULL = Failure("UNAVAILABLE", 503, "in ensemble 'classifier', Exceeds maximum queue size")


@pytest.mark.parametrize(
    "failure",
    [
        Failure("UNAUTHENTICATED", 401, "the token has expired"),
        Failure("PERMISSION_DENIED", 403, "not for you"),
        Failure("UNAVAILABLE", 403, "This protocol is restricted, expecting header 'k'"),
    ],
)
def test_an_expired_token_is_not_the_items_fault_and_not_asked_again(
    triton: FakeTriton, wire: str, classify_texts, failure: Failure
):
    triton.failure = failure
    with pytest.raises(NotAllowed, match=failure.message) as caught:
        classify_texts(triton.urls[wire], ["words"])
    assert not isinstance(caught.value, InvalidInput)
    assert triton.num_failures == 1


def test_an_error_says_status_server_and_attempts(triton: FakeTriton, wire: str, classify_texts):
    triton.failure = FULL
    with pytest.raises(Overloaded) as caught:
        classify_texts(triton.urls[wire], ["words"], retries=Retries(max_attempts=2, first_pause_s=0.001))
    error = caught.value
    assert error.status == {"grpc": "UNAVAILABLE", "http": "503"}[wire]
    assert (error.server, error.num_attempts) == (triton.urls[wire], 2)


def test_a_repository_of_another_kind_is_not_the_items_fault(triton: FakeTriton, wire: str, classify_texts):
    triton.failure = Failure("INVALID_ARGUMENT", 400, "unexpected inference output 'labels_sha256' for model")
    with pytest.raises(DiptychError, match="Is this a Diptych repository") as caught:
        classify_texts(triton.urls[wire], ["words"])
    assert not isinstance(caught.value, InvalidInput)


@pytest.mark.parametrize("hangs_up", [True, False])
@pytest.mark.parametrize(("status", "kind"), [("413 Too Large", InvalidInput), ("401 Who?", NotAllowed)])
def test_a_server_that_refuses_by_the_head_is_heard(
    listen, classify_images, status: str, kind: type[DiptychError], hangs_up: bool
):
    """As Envoy, nginx and Go do. One reads nothing more, the other hangs up over unread bytes."""
    heads = []
    is_over = threading.Event()

    def refuse(connection: socket.socket) -> None:
        heads.append(connection.recv(1000))
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno".encode())
        if not hangs_up:
            is_over.wait(60)  # longer than the client's deadline

    url = f"http://127.0.0.1:{listen(refuse)}"
    with pytest.raises(kind, match=r"^HTTP 4\d\d: no"):
        classify_images(url, [bytes(15_000_000)], timeout_s=10)
    is_over.set()
    assert len(heads) == 1


def test_a_busy_server_is_asked_again_while_the_deadline_allows(
    triton: FakeTriton, wire: str, classify_texts
):
    triton.failures = [FULL] * 8
    retries = Retries(first_pause_s=0.01, last_pause_s=0.02)
    (answer,) = classify_texts(triton.urls[wire], ["words"], timeout_s=15, retries=retries)
    assert answer.timings.num_attempts == 9


def test_a_crowd_before_a_full_queue_outlasts_the_budget(triton: FakeTriton, wire: str, classify_texts):
    triton.failures = [FULL] * 8
    retries = Retries(first_pause_s=0.01, last_pause_s=0.02, budget=2)
    (answer,) = classify_texts(triton.urls[wire], ["words"], timeout_s=15, retries=retries)
    assert answer.timings.num_attempts == 9


def test_a_server_says_how_long_to_wait(triton: FakeTriton, wire: str, classify_texts):
    triton.failures = [Failure("RESOURCE_EXHAUSTED", 429, "busy", retry_after="0.3")]
    retries = Retries(first_pause_s=0.001)
    (answer,) = classify_texts(triton.urls[wire], ["words"], retries=retries)
    assert answer.timings.num_attempts == 2
    assert answer.timings.total_ms > 300


def test_a_wait_beyond_the_deadline_is_not_begun(triton: FakeTriton, wire: str, classify_texts):
    triton.failure = Failure("RESOURCE_EXHAUSTED", 429, "busy", retry_after="60")
    with pytest.raises(Overloaded):
        classify_texts(triton.urls[wire], ["words"], timeout_s=30)
    assert triton.num_failures == 1


@pytest.mark.parametrize("after", ["Mon, 01 Jan 2035 00:00:00 GMT", "-5", "nan", "1e300"])
def test_a_retry_after_that_is_no_number_of_seconds_is_left_alone(
    triton: FakeTriton, wire: str, classify_texts, after: str
):
    triton.failures = [Failure("RESOURCE_EXHAUSTED", 429, "busy", retry_after=after)]
    (answer,) = classify_texts(triton.urls[wire], ["words"])
    assert answer.timings.num_attempts == 2


def test_a_change_of_protocol_is_no_answer(listen, classify_texts):
    def switch(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n")
        with contextlib.suppress(OSError):
            connection.recv(10_000)

    url = f"http://127.0.0.1:{listen(switch)}"
    with pytest.raises(ConnectionFailed, match=r"no HTTP/1\.1 comes from there"):
        classify_texts(url, ["words"], timeout_s=5, retries=Retries(max_attempts=1))


def test_no_retries_means_none(triton: FakeTriton, wire: str, classify_texts):
    triton.failure = FULL
    with pytest.raises(Overloaded):
        classify_texts(triton.urls[wire], ["words"], retries=Retries(budget=0))
    assert triton.num_failures == 1


def test_a_deadline_is_a_timeout_and_an_argument_a_value():
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert issubclass(InvalidInput, ValueError)
    assert DeadlineExceeded("late", "id").errno is None


def test_the_shares_of_a_dead_server_fall_on_all_others(wire: str):
    with contextlib.ExitStack() as running:
        servers = [running.enter_context(FakeTriton().running()) for _ in range(3)]
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            dead = f"{wire}://127.0.0.1:{nobody.getsockname()[1]}"
        with Client([dead, *(server.urls[wire] for server in servers)]) as client:
            for _ in range(33):
                client.classify(text="words")
    counts = [sum(not received.num_classes for received in server.received) for server in servers]
    assert sum(counts) == 33
    assert max(counts) - min(counts) <= 3
