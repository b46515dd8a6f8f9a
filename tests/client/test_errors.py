"""What the wire says becomes one of our errors; what the caller gets wrong is said before it is sent."""

from __future__ import annotations

import pickle

import pytest

import diptych_client
from diptych_client import Client, DiptychError, InvalidInput, Tls
from diptych_client._errors import error_from_grpc, error_from_http
from diptych_client._servers import Endpoint


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("INVALID_ARGUMENT", "unexpected shape", "InvalidInput"),
        ("NOT_FOUND", "no such model", "ModelNotReady"),
        ("UNAVAILABLE", "Exceeds maximum queue size", "Overloaded"),
        ("UNAVAILABLE", "Request timeout expired", "DeadlineExceeded"),
        ("UNAVAILABLE", "Request for unknown model: 'classifier' has no available versions", "ModelNotReady"),
        (
            "UNAVAILABLE",
            "Server is stopping, scheduler for model has stopped accepting new inference requests",
            "ModelNotReady",
        ),
        ("UNAVAILABLE", "Connection reset by peer", "ConnectionFailed"),
        ("CANCELLED", "Channel closed!", "ConnectionFailed"),
        ("RESOURCE_EXHAUSTED", "too many requests", "Overloaded"),
        ("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (5 vs. 4)", "InvalidInput"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "DeadlineExceeded"),
        ("INTERNAL", "anything", "ServerFault"),
        ("UNIMPLEMENTED", "", "ServerFault"),
    ],
)
def test_a_grpc_status_has_one_error(code: str, details: str, kind: str):
    assert type(error_from_grpc(code, details, "id")) is getattr(diptych_client, kind)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, b'{"error":"unexpected shape"}', "InvalidInput", "unexpected shape"),
        (503, b'{"error":"Exceeds maximum queue size"}', "Overloaded", "Exceeds maximum queue size"),
        (500, b'{"error":"stub died"}', "ServerFault", "stub died"),
        (413, b"<html>Too Large</html>", "InvalidInput", "HTTP 413: <html>Too Large</html>"),
        (401, b"no token", "NotAllowed", "HTTP 401: no token"),
        (
            403,
            b'{"error":"This API is restricted, expecting header"}',
            "NotAllowed",
            "This API is restricted, expecting header",
        ),
        (429, b"", "Overloaded", "HTTP 429: empty answer"),
        (502, b"Bad Gateway", "ConnectionFailed", "HTTP 502: Bad Gateway"),
        (504, b'["not", "an object"]', "DeadlineExceeded", 'HTTP 504: ["not", "an object"]'),
        (404, b'{"error": 3}', "ModelNotReady", 'HTTP 404: {"error": 3}'),
    ],
)
def test_an_http_status_has_one_error(status: int, body: bytes, kind: str, message: str):
    error = error_from_http(status, body, "id")
    assert type(error) is getattr(diptych_client, kind)
    assert error.message == message


def test_tritons_prefixes_are_cut_and_the_field_is_read():
    details = "[request id: id] in ensemble 'classifier', preprocess: image and text: found both empty"
    error = error_from_grpc("INVALID_ARGUMENT", details, "id")
    assert error.message == "preprocess: image and text: found both empty"
    assert isinstance(error, InvalidInput)
    assert (error.field, error.found) == ("image and text", "both empty")
    assert error.request_id == "id"


def test_a_callers_words_in_a_message_do_not_change_its_type():
    details = "preprocess: text: found 'Request timeout expired'"
    assert type(error_from_grpc("INVALID_ARGUMENT", details, "id")) is InvalidInput


@pytest.mark.parametrize(
    "error", [InvalidInput("m", "id", "image", "a word"), diptych_client.Overloaded("m", "id")]
)
def test_errors_survive_a_process_boundary(error: DiptychError):
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == "m [request id]"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("grpc://triton", "grpc://triton:8001"),
        ("grpcs://triton", "grpcs://triton:8001"),
        ("https://triton", "https://triton:443"),
        ("http://triton", "http://triton:8000"),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
        ("grpc://[::1]:8001", "grpc://[::1]:8001"),
    ],
)
def test_a_url_names_an_endpoint(url: str, endpoint: str):
    assert str(Endpoint.parse(url)) == endpoint


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("127.0.0.1:8001", "'127.0.0.1:8001'"),
        ("ftp://triton", "'ftp://triton'"),
        ("http://triton/v2?a=b", "'http://triton/v2"),
        ("http://", "'http://'"),
        ("local:", "'local:'"),
        ("http://triton:abc", "a malformed URL"),
        ("http://user:secret@triton", "credentials before the host"),
    ],
)
def test_a_url_that_is_none_is_refused_without_repeating_secrets(url: str, found: str):
    with pytest.raises(
        InvalidInput, match=f"^url: found {found}.*; accepted: grpc://host:port or http"
    ) as raised:
        Client(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_timeout_that_is_no_time_is_refused(timeout_s: float):
    with pytest.raises(InvalidInput, match=f"^timeout_s: found {timeout_s}; accepted: a positive number"):
        Client("http://127.0.0.1:8000", timeout_s=timeout_s)


def test_no_servers_at_all_are_refused():
    with pytest.raises(InvalidInput, match=r"^url: found an empty list; accepted: grpc://"):
        Client([])


@pytest.mark.parametrize("min_score", [-0.1, 1.5, float("nan")])
def test_a_min_score_that_is_no_probability_is_refused(min_score: float):
    with pytest.raises(InvalidInput, match=f"^min_score: found {min_score}; accepted: a probability"):
        Client("http://127.0.0.1", min_score=min_score)


def test_half_a_certificate_is_refused():
    with pytest.raises(
        InvalidInput, match=r"^tls: found one of certificate_file and key_file; accepted: both"
    ):
        Tls(certificate_file="client.pem")


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_a_certificate_file_that_cannot_be_read_is_refused(scheme: str):
    with (
        Client(f"{scheme}://127.0.0.1", tls=Tls(ca_file="no/such.pem")) as client,
        pytest.raises(InvalidInput, match=r"^tls: found files that cannot be used \(.*No such file"),
    ):
        client.classify(text="words")


def test_a_path_over_grpc_is_refused_and_says_that_http_may_have_one():
    with pytest.raises(
        InvalidInput, match=r"with the path '/models'; accepted: no path over gRPC; over HTTP"
    ):
        Client("grpc://triton/models")
