"""Several servers behind one client. Proxies stand for the servers: each counts what it passes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from diptych_client import AsyncClient, Client, ConnectionFailed
from diptych_serving.server import Server
from tests.helpers.hostile_proxy import Fault, HostileProxy

WIRES = ("grpc", "http")
TIMEOUT_S = 10


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxies(server: Server, wire: str) -> Iterator[list[HostileProxy]]:
    """Three on one port of three loopback addresses, so that one name can stand for all."""
    target = (server.contact, int(getattr(server.ports, wire)))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(HostileProxy(target))
        others = [HostileProxy(target, listen=(f"127.0.0.{number}", first.port)) for number in (2, 3)]
        yield [first, *(stack.enter_context(other) for other in others)]


def urls_of(wire: str, proxies: list[HostileProxy]) -> list[str]:
    return [f"{wire}://127.0.0.{number}:{proxy.port}" for number, proxy in enumerate(proxies, start=1)]


def test_servers_take_turns(wire: str, proxies: list[HostileProxy]) -> None:
    with Client(urls_of(wire, proxies), timeout_s=TIMEOUT_S) as client:
        for _ in range(6):
            client.classify(text="a leaf")
        assert [proxy.num_connections for proxy in proxies] == [1, 1, 1]


def test_a_dead_server_costs_no_call_and_is_taken_back_when_it_returns(
    wire: str, proxies: list[HostileProxy]
) -> None:
    dead = proxies[1]
    with Client(urls_of(wire, proxies), timeout_s=TIMEOUT_S) as client:
        for _ in range(3):
            client.classify(text="a leaf")
        dead.stop()
        for _ in range(12):
            assert client.classify(text="a leaf").label

        dead.start()
        num_before = dead.num_connections
        deadline_s = time.monotonic() + 30
        while dead.num_connections == num_before and time.monotonic() < deadline_s:
            assert client.classify(text="a leaf").label
            time.sleep(0.05)
        assert dead.num_connections > num_before


def test_a_server_that_never_answers_is_left_alone_after_three_calls(
    wire: str, proxies: list[HostileProxy]
) -> None:
    proxies[0].fault = Fault.BLACK_HOLE
    with Client(urls_of(wire, proxies[:2]), timeout_s=1) as client:
        outcomes = []
        for _ in range(12):
            with contextlib.suppress(Exception):
                outcomes.append(client.classify(text="a leaf"))
        assert len(outcomes) >= 8


def test_the_async_twin_takes_turns_and_skips_the_dead(wire: str, proxies: list[HostileProxy]) -> None:
    async def ask() -> None:
        async with AsyncClient(urls_of(wire, proxies), timeout_s=TIMEOUT_S) as client:
            for _ in range(6):
                await client.classify(text="a leaf")
            assert all(proxy.num_connections == 1 for proxy in proxies)
            proxies[2].stop()
            for _ in range(6):
                assert (await client.classify(text="a leaf")).label

    asyncio.run(ask())


def test_all_addresses_of_a_name_are_used_and_looked_up_once(
    wire: str, proxies: list[HostileProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_lookups = 0
    look_up = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        nonlocal num_lookups
        if host != "triton.test":
            return look_up(host, port, *arguments, **options)
        num_lookups += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (1, 2, 3)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with Client(f"{wire}://triton.test:{proxies[0].port}", timeout_s=TIMEOUT_S) as client:
        for _ in range(6):
            client.classify(text="a leaf")
    assert [proxy.num_connections for proxy in proxies] == [1, 1, 1]
    assert num_lookups == 1


def test_localhost_is_found_where_it_is_two_addresses(server: Server, wire: str) -> None:
    """Often ::1 first, where Triton does not listen."""
    with Client(f"{wire}://localhost:{getattr(server.ports, wire)}", timeout_s=TIMEOUT_S) as client:
        assert client.classify(text="a leaf").label


def test_a_name_that_nobody_knows_is_a_failed_connection(wire: str) -> None:
    with (
        Client(f"{wire}://no-such-host.invalid", timeout_s=TIMEOUT_S) as client,
        pytest.raises(ConnectionFailed, match=rf"^{wire}://no-such-host\.invalid:800[01]: "),
    ):
        client.classify(text="a leaf")
