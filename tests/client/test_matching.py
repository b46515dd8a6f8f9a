"""Every answer belongs to its question, and every label to its probabilities."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from diptych_client import Client, ConnectionFailed, DiptychError, Retries
from tests.client.fake_triton import Failure, FakeTriton

LABELS = ["electronics", "clothing", "books", "home: garden"]


def test_an_answer_with_another_requests_id_is_asked_for_again(triton: FakeTriton, wire: str, classify_texts):
    triton.echoes = True
    triton.wrong_ids = [None, None, "somebody-elses"]  # an answer, its labels, and then the next answer
    answers = classify_texts(triton.urls[wire], ["0", "1", "2"])
    assert [answer.label for answer in answers] == LABELS[:3]
    assert [answer.timings.num_attempts for answer in answers] == [1, 2, 1]


def test_an_answer_with_another_requests_id_is_no_answer(triton: FakeTriton, wire: str, classify_texts):
    triton.wrong_ids = ["somebody-elses"]
    with pytest.raises(
        ConnectionFailed, match=r"an answer to another request \('somebody-elses'\) came back"
    ):
        classify_texts(triton.urls[wire], ["0"], retries=Retries(max_attempts=1))


def test_an_error_about_another_request_is_not_this_ones(triton: FakeTriton, wire: str, classify_texts):
    message = "[request id: somebody-elses] in ensemble 'classifier', preprocess: text: found; accepted: more"
    triton.failures = [Failure("INVALID_ARGUMENT", 400, message)]
    (answer,) = classify_texts(triton.urls[wire], ["0"])
    assert answer.timings.num_attempts == 2


@pytest.mark.parametrize("after_s", [0.0, 0.05])
def test_a_proxy_that_repeats_its_answers_shifts_nothing(triton: FakeTriton, classify_texts, after_s: float):
    triton.echoes, triton.repeats_after_s = True, after_s
    answers = classify_texts(triton.urls["http"], ["0", "1", "0", "1"], pause_s=0.1)
    assert [answer.label for answer in answers] == [LABELS[0], LABELS[1], LABELS[0], LABELS[1]]
    assert {answer.timings.num_attempts for answer in answers} == {1}


@pytest.mark.parametrize("after_s", [0.0, 0.05])
def test_an_error_that_a_proxy_repeats_is_not_the_next_requests(
    triton: FakeTriton, classify_texts, after_s: float
):
    """An error of a proxy carries no id, so that comparing ids would not do."""
    triton.repeats_after_s = after_s
    # The first answer, its labels (where the first answer comes once more, and they are asked for again), and
    # then the error, after which the client waits for longer than the proxy.
    first = [None, None, *[None] * (after_s > 0)]
    triton.failures = [*first, Failure("UNAVAILABLE", 429, "busy", retry_after="0.2")]
    answers = classify_texts(triton.urls["http"], ["0", "1", "2"], pause_s=0.1)
    assert [answer.timings.num_attempts for answer in answers] == [1, 2, 1]


@pytest.mark.parametrize("kind", [[], ["--asynchronous"]])
def test_processes_that_were_forked_after_a_call_get_their_own_answers(wire: str, kind: list[str]):
    command = [
        sys.executable,
        "-m",
        "bench.forked_callers",
        "--wire",
        wire,
        "--workers",
        "4",
        "--calls",
        "400",
        *kind,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == {"answered": 500, "wrong": 0, "failed": {}}


def test_a_server_that_restarts_with_another_repository_never_mixes_labels(wire: str):
    """Both begin at version 1, and calls go on meanwhile."""
    old, new = FakeTriton(), FakeTriton()
    old.labels, old.scores = ["a", "b"], [1.0, 0.0]
    new.labels, new.scores = ["c", "d"], [0.0, 1.0]  # under the old labels it would be b
    seen: list[str | None] = []
    is_over = threading.Event()

    def ask(client: Client) -> None:
        while not is_over.is_set():
            try:
                seen.append(client.classify(text="words", timeout_s=10).label)
            except DiptychError:
                seen.append("failed")  # between the two servers

    def wait_for(label: str) -> None:
        ends_s = time.monotonic() + 30
        while label not in seen:
            assert time.monotonic() < ends_s
            time.sleep(0.01)

    with ThreadPoolExecutor(4) as threads:
        with old.running():
            ports = {name: int(url.rpartition(":")[2]) for name, url in old.urls.items()}
            client = Client(old.urls[wire])
            for _ in range(4):
                threads.submit(ask, client)
            wait_for("a")
        with new.running(ports["grpc"], ports["http"]):
            try:
                wait_for("d")
            finally:
                is_over.set()
                threads.shutdown()
                client.close()
    assert set(seen) <= {"a", "d", "failed"}


def test_a_cold_start_asks_for_the_labels_once(triton: FakeTriton, wire: str):
    with Client(triton.urls[wire]) as client, ThreadPoolExecutor(16) as threads:
        labels = {answer.label for answer in threads.map(lambda _: client.classify(text="words"), range(16))}
    assert labels == {"clothing"}
    assert sum(received.num_classes > 0 for received in triton.received) == 1


def test_labels_of_many_releases_do_not_pile_up(triton: FakeTriton, wire: str):
    with Client(triton.urls[wire]) as client:
        for number in range(40):
            triton.labels[0] = f"label {number}"
            assert f"label {number}" in client.classify(text="words").probabilities
        assert len(client._conversation._labels) <= 16
