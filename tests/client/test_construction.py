"""What a client is made of: arguments that are wrong are named; the environment; logs."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from diptych_client import AsyncClient, Client, DiptychError, InvalidInput, Retries
from tests.client.fake_triton import Failure, FakeTriton


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"url": Path("/models")}, "url: found .*Path; accepted: grpc://"),
        ({"url": None}, "url: found NoneType"),
        ({"url": [b"grpc://a"]}, "url: found bytes"),
        ({"retries": 3}, r"retries: found 3; accepted: Retries\(\.\.\.\), or None"),
        ({"tls": True}, "tls: found True"),
        ({"limits": 5}, "limits: found 5"),
        ({"fetch": "https://host"}, "fetch: found 'https://host'; accepted: a function"),
        ({"headers": "a=b"}, "headers: found str"),
        ({"shrink_to_px": "512"}, "shrink_to_px: found '512'"),
        ({"min_score": "0.5"}, "min_score: found '0.5'"),
        ({"min_score": float("nan")}, "min_score: found nan"),
        (
            {"timeout_s": None},
            "timeout_s: found None; accepted: a positive number of seconds, at most 1,000,000",
        ),
        ({"timeout_s": "5"}, "timeout_s: found '5'"),
        ({"timeout_s": True}, "timeout_s: found True"),
        ({"timeout_s": 1e10}, "timeout_s: found 10000000000.0"),
        ({"timeout_s": float("nan")}, "timeout_s: found nan"),
    ],
)
def test_a_wrong_argument_is_named_at_construction(kind: type, arguments: dict[str, Any], found: str):
    with pytest.raises(ValueError, match=f"^{found}") as caught:
        kind(**{"url": "grpc://127.0.0.1", **arguments})
    assert isinstance(caught.value, InvalidInput)


@pytest.mark.parametrize("timeout_s", ["5", 0, -1, 1e10, float("inf")])
def test_a_wrong_timeout_is_named_at_the_call(triton: FakeTriton, classify_each, timeout_s: Any):
    with pytest.raises(InvalidInput, match=r"^timeout_s: found"):
        classify_each(triton.urls["http"], [{"text": "words", "timeout_s": timeout_s}])


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"max_attempts": "3"}, "max_attempts='3'"),
        ({"first_pause_s": -1}, "first_pause_s=-1"),
        ({"last_pause_s": float("inf")}, "last_pause_s=inf"),
        ({"budget": -1}, "budget=-1"),
        ({"refill": float("nan")}, "refill=nan"),
    ],
)
def test_retries_that_make_no_sense_are_named(arguments: dict[str, Any], found: str):
    with pytest.raises(InvalidInput, match=f"^retries: found {found}"):
        Retries(**arguments)


def test_the_environment_configures_a_client(triton: FakeTriton, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIPTYCH_URL", triton.urls["http"])
    monkeypatch.setenv("DIPTYCH_TIMEOUT_S", "7")
    monkeypatch.setenv("DIPTYCH_HEADERS", "x-team=shop")
    with Client.from_env(min_score=0.95) as client:
        assert repr(client) == f"Client('{triton.urls['http']}', timeout_s=7)"
        assert client.classify(text="words").label is None
    assert triton.received[0].headers["x-team"] == "shop"
    assert isinstance(AsyncClient.from_env(url="grpc://127.0.0.1"), AsyncClient)


def test_an_environment_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIPTYCH_TIMEOUT_S", "soon")
    with pytest.raises(InvalidInput, match="DIPTYCH_TIMEOUT_S: found 'soon'; accepted: a number of seconds"):
        Client.from_env()


def test_a_gateway_may_put_a_path_before_the_server(triton: FakeTriton, classify_texts):
    (answer,) = classify_texts(f"{triton.urls['http']}/models/diptych/", ["words"])
    assert answer.label == "clothing"
    assert triton.prefixes == {"/models/diptych"}


def test_logs_say_what_happened_and_nothing_of_an_item_or_a_secret(
    triton: FakeTriton, wire: str, classify_texts, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, "diptych_client")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        dead = f"{wire}://127.0.0.1:{nobody.getsockname()[1]}"
    triton.failures = [None, None, Failure("UNAVAILABLE", 503, "Exceeds maximum queue size of private words")]
    headers = {"authorization": "Bearer the-token"}
    classify_texts([triton.urls[wire], dead], ["private words"] * 4, headers=headers)
    assert f"{dead}: down" in caplog.text
    assert "Overloaded; attempt 2" in caplog.text
    assert "ConnectionFailed; attempt 2" in caplog.text
    assert "private" not in caplog.text
    assert "the-token" not in caplog.text


def test_a_dead_end_raises_ours_and_nothing_raw(wire: str, classify_texts):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        dead = f"{wire}://127.0.0.1:{nobody.getsockname()[1]}"
    with pytest.raises(DiptychError) as caught:
        classify_texts(dead, ["words"], timeout_s=5)
    assert (caught.value.server, caught.value.num_attempts) == (dead, 4)
