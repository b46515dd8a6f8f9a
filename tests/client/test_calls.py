"""The client against a real wire and a fake server: what it sends, and what it makes of the answers."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import diptych_client
from diptych_client import Client, Retries
from tests.client.fake_triton import Failure, FakeTriton

TRANSPORTS = ("grpc", "http")


@pytest.fixture(params=TRANSPORTS)
def client(request: pytest.FixtureRequest, triton: FakeTriton) -> Iterator[Client]:
    with Client(triton.urls[request.param]) as client:
        yield client


def test_both_inputs_are_always_sent_and_both_outputs_are_asked_for(client: Client, triton: FakeTriton):
    client.classify(image=b"picture\0\0")
    client.classify(text="Größe 42")
    client.classify(image=b"picture", text="words")

    items = [received.inputs for received in triton.received if not received.num_classes]
    assert [item["image"] for item in items] == [
        ("BYTES", (1, 1), b"\x09\0\0\0picture\0\0"),
        ("BYTES", (1, 1), b"\0\0\0\0"),
        ("BYTES", (1, 1), b"\x07\0\0\0picture"),
    ]
    assert [item["text"] for item in items] == [
        ("BYTES", (1, 1), b"\0\0\0\0"),
        ("BYTES", (1, 1), b"\x0a\0\0\0Gr\xc3\xb6\xc3\x9fe 42"),
        ("BYTES", (1, 1), b"\x05\0\0\0words"),
    ]
    assert {(received.model, received.outputs) for received in triton.received} == {
        ("classifier", ("probabilities", "labels_sha256"))
    }


def test_an_answer_holds_the_servers_fp32_values_exactly_and_in_label_order(
    client: Client, triton: FakeTriton
):
    answer = client.classify(text="words")

    (expected,) = struct.iter_unpack("<4f", struct.pack("<4f", *triton.scores))
    assert list(answer.probabilities) == ["electronics", "clothing", "books", "home: garden"]
    assert tuple(answer.probabilities.values()) == expected
    assert (answer.label, answer.score) == ("clothing", expected[1])
    assert answer.model_version == "1"


def test_both_transports_give_the_same_answer(triton: FakeTriton):
    answers = []
    for transport in TRANSPORTS:
        with Client(triton.urls[transport]) as client:
            answers.append(client.classify(image=b"picture", text="words"))
    over_grpc, over_http = answers
    assert over_grpc.probabilities == over_http.probabilities
    assert over_grpc.label == over_http.label
    assert over_grpc.request_id != over_http.request_id


def test_every_request_has_an_id_of_its_own_which_the_answer_repeats(client: Client, triton: FakeTriton):
    answers = [client.classify(text="words") for _ in range(3)]

    sent = [received.request_id for received in triton.received]
    assert len(set(sent)) == len(sent) == 4  # three answers, and the labels once
    assert {answer.request_id for answer in answers} < set(sent)


def test_labels_are_asked_for_once_for_each_version_of_the_model(client: Client, triton: FakeTriton):
    client.classify(text="words")
    client.classify(text="words")
    assert sum(received.num_classes > 0 for received in triton.received) == 1

    triton.model_version, triton.labels = "2", ["a", "b", "c", "d"]
    assert list(client.classify(text="words").probabilities) == ["a", "b", "c", "d"]
    assert sum(received.num_classes > 0 for received in triton.received) == 2


def test_labels_asks_the_server_each_time(client: Client, triton: FakeTriton):
    assert client.labels() == ("electronics", "clothing", "books", "home: garden")
    triton.labels[0] = "gadgets"
    assert client.labels()[0] == "gadgets"


def test_an_image_above_grpcs_default_limit_passes(client: Client, triton: FakeTriton):
    image = bytes(range(256)) * 40_000  # 10 MB; gRPC's default is 4 MiB
    client.classify(image=image)
    assert triton.received[0].inputs["image"][2][4:] == image


def test_a_call_ends_at_its_deadline(client: Client, triton: FakeTriton):
    triton.hold.clear()
    with pytest.raises(
        diptych_client.DeadlineExceeded, match=r"^no answer within 0\.3 s \[request [0-9a-f]{32}\]$"
    ):
        client.classify(text="words", timeout_s=0.3)


def test_a_short_deadline_over_grpc_does_not_cancel_in_the_server(triton: FakeTriton):
    """In tritonserver 2.51.0 that races with the answer, and ends it."""
    with Client(triton.urls["grpc"]) as client:
        triton.hold.clear()
        with pytest.raises(diptych_client.DeadlineExceeded):
            client.classify(text="late", timeout_s=0.1)
        time.sleep(0.1)  # for a cancellation to arrive
        triton.hold.set()
        assert client.classify(text="next").label == "clothing"
    assert triton.cancelled == []


def test_a_connection_whose_call_was_cut_off_is_not_used_again(triton: FakeTriton):
    with Client(triton.urls["http"]) as client:
        triton.hold.clear()
        with pytest.raises(diptych_client.DeadlineExceeded):
            client.classify(text="late", timeout_s=0.1)
        triton.scores = [0.7, 0.1, 0.1, 0.1]
        triton.hold.set()
        assert client.classify(text="next").label == "electronics"


def test_a_server_that_trickles_its_answer_is_cut_off_at_the_deadline(listen):
    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n")
        while True:  # until the client hangs up
            connection.sendall(b"X-Filler: 1\r\n")
            time.sleep(0.05)

    with (
        Client(f"http://127.0.0.1:{listen(trickle)}", timeout_s=0.3) as client,
        pytest.raises(diptych_client.DeadlineExceeded, match=r"within 0\.3 s"),
    ):
        client.classify(text="words")


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (
            Failure(
                "INVALID_ARGUMENT",
                400,
                "in ensemble 'classifier', preprocess: image: found 5 bytes of text; accepted: a PNG",
            ),
            "InvalidInput",
            "preprocess: image: found 5 bytes of text; accepted: a PNG",
        ),
        (
            Failure("UNAVAILABLE", 503, "in ensemble 'classifier', Exceeds maximum queue size"),
            "Overloaded",
            "Exceeds maximum queue size",
        ),
        (
            Failure("UNAVAILABLE", 503, "Request timeout expired"),  # with time left: the server's own limit
            "Overloaded",
            "Request timeout expired",
        ),
        (
            Failure("NOT_FOUND", 404, "Request for unknown model: 'classifier' is not found"),
            "ModelNotReady",
            "Request for unknown model: 'classifier' is not found",
        ),
        (Failure("INTERNAL", 500, "stub process died"), "ServerFault", "stub process died"),
    ],
)
def test_a_failure_has_one_type_and_one_wording_over_both_transports(
    triton: FakeTriton, wire: str, failure: Failure, kind: str, message: str
):
    triton.failure = failure
    retries = Retries(max_attempts=2, first_pause_s=0.001)
    with (
        Client(triton.urls[wire], retries=retries) as client,
        pytest.raises(getattr(diptych_client, kind)) as raised,
    ):
        client.classify(text="words")
    assert raised.value.message == message
    assert len(raised.value.request_id or "") == 32


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nobody_listening_is_a_failed_connection(transport: str):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        Client(f"{transport}://127.0.0.1:{port}") as client,
        pytest.raises(
            diptych_client.ConnectionFailed, match=rf"^{transport}://127\.0\.0\.1:{port}: .*refused"
        ),
    ):
        client.classify(text="words")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_server_that_hangs_up_is_a_failed_connection(listen, transport: str):
    with (
        Client(f"{transport}://127.0.0.1:{listen(lambda connection: None)}") as client,
        pytest.raises(diptych_client.ConnectionFailed, match=f"^{transport}://"),
    ):
        client.classify(text="words")


def test_an_http_answer_that_breaks_off_is_a_failed_connection(listen):
    def break_off(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(10_000):  # closing over unread bytes would reset the connection
            pass

    with (
        Client(f"http://127.0.0.1:{listen(break_off)}") as client,
        pytest.raises(
            diptych_client.ConnectionFailed, match="closed the connection in the middle of an answer"
        ),
    ):
        client.classify(text="words")


def test_a_peer_that_speaks_no_http_is_a_failed_connection(listen):
    def speak_http2(connection: socket.socket) -> None:  # as Triton's gRPC port does
        connection.recv(10_000)
        connection.sendall(b"\0\0\x06\4\0\0\0\0\0\0\5\0\0\x40\0" * 100)
        while connection.recv(10_000):
            pass

    with (
        Client(f"http://127.0.0.1:{listen(speak_http2)}") as client,
        pytest.raises(
            diptych_client.ConnectionFailed, match=r"no HTTP/1\.1 comes from there .* Is it the gRPC port"
        ),
    ):
        client.classify(text="words")


def test_http_connections_are_kept_between_calls(triton: FakeTriton):
    with Client(triton.urls["http"]) as client:
        for _ in range(5):
            client.classify(text="words")
    assert triton.num_http_connections == 1


def test_an_idle_connection_that_the_server_closed_is_replaced_silently(triton: FakeTriton):
    triton.hangs_up = True
    with Client(triton.urls["http"]) as client:
        for _ in range(3):
            assert client.classify(text="words").label == "clothing"
    assert triton.num_http_connections == 4  # three answers, and the labels once


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"labels": []}, "b'0.900000:1', which names no label"),
        ({"labels": ["a", "a", "b", "c"]}, "labels that are not unique"),
        ({"scores": [float("nan"), 0.5, 0.3, 0.2]}, "probabilities that are not numbers"),
    ],
)
def test_an_answer_that_breaks_the_contract_is_the_servers_fault(
    client: Client, triton: FakeTriton, changes: dict[str, list], found: str
):
    vars(triton).update(changes)
    with pytest.raises(diptych_client.ServerFault, match=f"'classifier', output 'probabilities': .*{found}"):
        client.classify(text="words")


def test_sixteen_threads_share_a_client(client: Client, triton: FakeTriton):
    def call(index: int) -> bool:
        answer = client.classify(text=f"item {index}")
        (received,) = [each for each in list(triton.received) if each.request_id == answer.request_id]
        return received.inputs["text"][2][4:] == f"item {index}".encode()

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(call, range(16 * 50)))
    assert triton.num_http_connections <= 16


def test_a_closed_client_says_so(client: Client):
    client.close()
    with pytest.raises(
        RuntimeError, match=r"^Client\('(grpc|http)://127\.0\.0\.1:\d+', timeout_s=5\) is closed$"
    ):
        client.classify(text="words")


def test_the_time_that_is_left_is_sent_as_tritons_queue_timeout(client: Client, triton: FakeTriton):
    client.classify(text="words", timeout_s=3)
    assert 2_000_000 < triton.received[0].timeout_us <= 3_000_000


def test_importing_the_package_loads_neither_grpc_nor_numpy_nor_pillow():
    heavy = "{'grpc', 'numpy', 'PIL', 'h11', 'gevent', 'tritonclient', 'google.protobuf'}"
    code = f"import sys, diptych_client; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
