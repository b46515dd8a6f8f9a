"""Which servers there are, and which one is asked next.

`Endpoint` is a checked URL, `Address` one IP address behind it, `resolve` finds addresses within a deadline,
and `Balancer` chooses among them without any I/O.
"""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

from diptych_client._errors import ConnectionFailed, InvalidInput
from diptych_client._retries import Deadline

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}  # Triton's own; it speaks no HTTPS
LOCAL = "local"
ACCEPTED = "grpc://host:port or http://host:port, with an s for TLS (grpcs, https), or local:PATH"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """What a URL says. `path` is a model repository for `local:`, and empty for all else."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Raises InvalidInput, without repeating credentials that the URL may hold."""
        if not isinstance(url, str):
            raise InvalidInput.refusing("url", type(url).__qualname__, ACCEPTED)
        if url.startswith(f"{LOCAL}:") and len(url) > len(LOCAL) + 1:
            return cls(LOCAL, "", 0, url[len(LOCAL) + 1 :])
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, parts.hostname, parts.port
        except ValueError as error:  # a port that is no number, a broken IPv6 address
            raise InvalidInput.refusing("url", f"a malformed URL ({error})", ACCEPTED) from None
        if "@" in parts.netloc:
            raise InvalidInput.refusing("url", "credentials before the host", ACCEPTED)
        has_more = parts.path not in ("", "/") or parts.query or parts.fragment
        if scheme not in DEFAULT_PORTS or not host or has_more:
            raise InvalidInput.refusing("url", repr(url), ACCEPTED)
        return cls(scheme, host, DEFAULT_PORTS[scheme] if port is None else port)

    @property
    def is_secure(self) -> bool:
        return self.scheme in ("grpcs", "https")

    @property
    def has_name(self) -> bool:
        """Whether the host is a name, which may stand for many addresses that come and go."""
        if self.scheme == LOCAL:
            return False
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False

    @property
    def authority(self) -> str:
        """host:port, with the brackets that IPv6 needs."""
        return _authority(self.host, self.port)

    def __str__(self) -> str:
        return f"{LOCAL}:{self.path}" if self.scheme == LOCAL else f"{self.scheme}://{self.authority}"


@dataclasses.dataclass(frozen=True)
class Address:
    """One server: an endpoint, and the IP address that its name stood for."""

    endpoint: Endpoint
    ip: str

    @property
    def scheme(self) -> str:
        return self.endpoint.scheme

    @property
    def authority(self) -> str:
        return _authority(self.ip, self.endpoint.port)

    def __str__(self) -> str:
        at = f" at {self.ip}" if self.ip != self.endpoint.host else ""
        return f"{self.endpoint}{at}"


def parse_urls(urls: str | Sequence[str]) -> tuple[Endpoint, ...]:
    """One or many, each once. Raises InvalidInput."""
    endpoints = tuple(
        dict.fromkeys(Endpoint.parse(url) for url in ([urls] if isinstance(urls, str) else urls))
    )
    if not endpoints:
        raise InvalidInput.refusing("url", "an empty list", ACCEPTED)
    return endpoints


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(endpoint: Endpoint, deadline: Deadline) -> tuple[Address, ...]:
    """Raises ConnectionFailed or DeadlineExceeded."""
    found: list[tuple[Address, ...]] = []
    failures: list[OSError] = []

    def look_up() -> None:
        try:
            found.append(
                _addresses(endpoint, socket.getaddrinfo(*_question(endpoint), type=socket.SOCK_STREAM))
            )
        except OSError as error:
            failures.append(error)

    # A thread, because getaddrinfo cannot be interrupted; it ends by itself.
    thread = threading.Thread(target=look_up, name="diptych-resolver", daemon=True)
    thread.start()
    thread.join(deadline.remaining_s())
    if failures:
        raise _failed(endpoint, failures[0])
    if not found:
        raise deadline.exceeded()
    return found[0]


async def resolve_async(endpoint: Endpoint, deadline: Deadline) -> tuple[Address, ...]:
    """The same on an event loop."""
    import asyncio

    lookup = asyncio.get_running_loop().getaddrinfo(*_question(endpoint), type=socket.SOCK_STREAM)
    try:
        return _addresses(endpoint, await asyncio.wait_for(lookup, deadline.remaining_s()))
    except asyncio.TimeoutError:
        raise deadline.exceeded() from None
    except OSError as error:
        raise _failed(endpoint, error) from None


def _question(endpoint: Endpoint) -> tuple[str, int]:
    return endpoint.host, endpoint.port


def _addresses(endpoint: Endpoint, answers: list[Any]) -> tuple[Address, ...]:
    return tuple(dict.fromkeys(Address(endpoint, str(sockaddr[0])) for *_, sockaddr in answers))


def _failed(endpoint: Endpoint, error: OSError) -> ConnectionFailed:
    return ConnectionFailed(f"{endpoint}: {error.strerror or error}")


# A name's addresses are looked up again after this: pods come and go, and gRPC's own resolver waits as long.
RESOLVE_EVERY_S = 30.0
# How long a server that failed is left alone, doubling from the first to the last.
FIRST_REST_S = 0.5
LAST_REST_S = 10.0
# A server that accepts calls and answers none is down too; a single late answer is not proof of it.
TIMEOUTS_UNTIL_DOWN = 3


@dataclasses.dataclass
class _Health:
    num_failures: int = 0
    num_timeouts: int = 0
    rests_until_s: float = 0.0


class Balancer:
    def __init__(self, endpoints: Sequence[Endpoint], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = 0
        self._health: collections.defaultdict[Address, _Health] = collections.defaultdict(_Health)
        self._addresses: dict[Endpoint, tuple[Address, ...]] = {
            endpoint: () if endpoint.has_name else (Address(endpoint, endpoint.host),)
            for endpoint in endpoints
        }
        self._stale_at_s = {endpoint: float("-inf") for endpoint in endpoints if endpoint.has_name}

    def stale(self) -> list[Endpoint]:
        """The endpoints whose addresses the caller is to look up now; while it does, others use the old."""
        if not self._stale_at_s:
            return []
        now_s = self._clock()
        with self._lock:
            stale = [endpoint for endpoint, at_s in self._stale_at_s.items() if at_s <= now_s]
            for endpoint in stale:
                if self._addresses[endpoint]:
                    self._stale_at_s[endpoint] = now_s + RESOLVE_EVERY_S
        return stale

    def update(self, endpoint: Endpoint, addresses: tuple[Address, ...]) -> None:
        with self._lock:
            self._addresses[endpoint] = addresses
            self._stale_at_s[endpoint] = self._clock() + RESOLVE_EVERY_S
            for gone in set(self._health).difference(*self._addresses.values()):
                del self._health[gone]

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(address for addresses in self._addresses.values() for address in addresses)

    def pick(self, tried: Collection[Address] = ()) -> Address:
        """The next in turn that is up, rather one that this call has not tried. Never none at all: where
        all seem down, the one that has rested longest."""
        with self._lock:
            addresses = self.addresses
            self._turn += 1
            in_turn = [addresses[(self._turn + offset) % len(addresses)] for offset in range(len(addresses))]
            now_s = self._clock()
            candidates = [address for address in in_turn if address not in tried] or in_turn
            for address in candidates:
                if address not in self._health or not self._health[address].rests_until_s:
                    return address
                if self._health[address].rests_until_s <= now_s:
                    self._rest(address)  # this call finds out, and the others wait for its news
                    return address
            return min(candidates, key=lambda address: self._health[address].rests_until_s)

    def has_other(self, tried: Collection[Address]) -> bool:
        """Whether an address that is not known to be down is left to try."""
        with self._lock:
            return any(
                address not in tried and not self._health[address].rests_until_s for address in self.addresses
            )

    def report_answer(self, address: Address) -> None:
        """It speaks, be it to refuse."""
        with self._lock:
            self._health.pop(address, None)

    def report_failure(self, address: Address) -> None:
        """No connection, or no model behind it."""
        with self._lock:
            self._health[address].num_failures += 1
            self._rest(address)

    def report_timeout(self, address: Address) -> None:
        with self._lock:
            health = self._health[address]
            health.num_timeouts += 1
            if health.num_timeouts >= TIMEOUTS_UNTIL_DOWN:
                health.num_failures += 1
                self._rest(address)

    def _rest(self, address: Address) -> None:
        health = self._health[address]
        rest_s = min(LAST_REST_S, FIRST_REST_S * 2 ** max(0, min(health.num_failures, 10) - 1))
        health.rests_until_s = self._clock() + rest_s
