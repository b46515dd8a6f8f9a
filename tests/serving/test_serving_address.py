"""Where a server listens: names are resolved before tritonserver sees them, which it would misread."""

from __future__ import annotations

import socket

import pytest

from diptych_serving.errors import UserError
from diptych_serving.server.address import Address
from diptych_serving.server.ports import Ports
from diptych_serving.server.triton_log import describe_start
from diptych_serving.server.waiting import says_what_it_waits_for


@pytest.mark.parametrize(
    ("host", "for_http", "for_url", "contact"),
    [
        ("localhost", "127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0", "0.0.0.0", "127.0.0.1"),
        ("::1", "ipv6:::1", "[::1]", "::1"),
        ("[::1]", "ipv6:::1", "[::1]", "::1"),
        ("::", "ipv6:::", "[::]", "::1"),
    ],
)
def test_each_part_of_tritonserver_gets_the_address_in_its_form(
    host: str, for_http: str, for_url: str, contact: str
) -> None:
    address = Address.resolve(host)
    assert (address.for_http, address.for_url, str(address.contact)) == (for_http, for_url, contact)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "", "256.1.1.1", "a..b", "1.2.3.4:8000"])
def test_a_host_that_is_none_is_refused_with_what_is_accepted(host: str) -> None:
    with pytest.raises(UserError, match=r"^--host .*: .*Expected an address of this machine, such as 127"):
        Address.resolve(host)


def test_an_address_of_another_machine_is_refused_before_the_start() -> None:
    with pytest.raises(UserError, match=r"^--host 192\.0\.2\.1: Cannot assign requested address"):
        Ports(http=0, grpc=0, metrics=0).settle("192.0.2.1")


def test_a_port_that_is_taken_on_ipv6_alone_is_found() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--http-port {port}: taken by "):
            Ports(http=port, grpc=0, metrics=0).settle("::1")


LOADING = 'I1125 17:25:36.4 9 model_lifecycle.cc:472] "loading: {}:1"\n'
LOADED = "I1125 17:25:37.8 9 model_lifecycle.cc:839] \"successfully loaded '{}'\"\n"
STARTED = 'I1125 17:25:49.0 9 http_server.cc:4713] "Started HTTPService at 255.255.255.255:8000"\n'
HARMLESS = 'E1125 17:24:44.7 7 server.cc:241] "CudaDriverHelper has not been initialized."\n'
WARNING = 'W1125 17:25:40.0 9 model.cc:1] "the disk is slow"\n'


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "it has not begun to load models"),
        (
            LOADING.format("tally") + LOADING.format("preprocess") + LOADED.format("tally") + HARMLESS,
            "it loads preprocess",
        ),
        (
            LOADING.format("tally") + LOADED.format("tally") + STARTED,
            "it says that it listens at 255.255.255.255:8000, but answers nothing there",
        ),
        (
            LOADING.format("tally") + WARNING,
            'it loads tally; its log: W1125 17:25:40.0 9 model.cc:1] "the disk is slow"',
        ),
    ],
    ids=["nothing yet", "one is loaded", "listens elsewhere", "a warning"],
)
def test_a_start_that_takes_long_says_what_it_waits_for(log: str, words: str) -> None:
    assert describe_start(log) == words


def test_it_is_said_again_and_again_until_the_wait_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    looks = iter(["it loads tally", "it loads nothing"])
    seen: list[str] = []

    def look() -> str:
        seen.append(next(looks, "over"))
        return seen[-1]

    with says_what_it_waits_for(look, first_s=0.01, every_s=0.01):
        while "over" not in seen:
            pass
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["Not ready after 0 s: it loads tally.", "Not ready after 0 s: it loads nothing."]
