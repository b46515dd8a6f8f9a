"""The servers of a client, and the choice of the next one.

`Endpoint` is a checked URL, `Address` one IP address behind it, `Resolver` finds addresses,
and `Balancer` chooses among them without any I/O.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import ipaddress
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from urllib.parse import urlsplit

from diptych_client._errors import ConnectionFailed, InvalidInput

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}  # Triton's own; it speaks no HTTPS
LOCAL = "local"
ACCEPTED = "grpc://host:port or http://host:port, with an s for TLS (grpcs, https), or local:PATH"
_PREFIX = re.compile(r"(/([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)*")


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A checked URL.

    path  for `local:` the model repository; for HTTP a gateway's prefix of /v2, without a trailing slash
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Raises InvalidInput, without showing credentials in the URL."""
        if not isinstance(url, str):
            raise InvalidInput.refusing("url", type(url).__qualname__, ACCEPTED)
        if url.startswith(f"{LOCAL}:") and len(url) > len(LOCAL) + 1:
            return cls(LOCAL, "", 0, url[len(LOCAL) + 1 :])
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, parts.hostname, parts.port
        except ValueError as error:  # an invalid port, a broken IPv6 address
            raise InvalidInput.refusing("url", f"a malformed URL ({error})", ACCEPTED) from None
        if "@" in parts.netloc:
            raise InvalidInput.refusing("url", "credentials before the host", ACCEPTED)
        prefix = parts.path.rstrip("/")
        if scheme not in DEFAULT_PORTS or not host or parts.query or parts.fragment:
            raise InvalidInput.refusing("url", repr(url), ACCEPTED)
        if prefix and (scheme not in ("http", "https") or not _PREFIX.fullmatch(prefix)):
            accepted = "no path over gRPC; over HTTP one of unreserved and percent-encoded characters"
            raise InvalidInput.refusing("url", f"{url!r} with the path {prefix!r}", accepted)
        return cls(scheme, host, DEFAULT_PORTS[scheme] if port is None else port, prefix)

    @property
    def is_secure(self) -> bool:
        return self.scheme in ("grpcs", "https")

    @property
    def has_name(self) -> bool:
        """Whether the host is a name, which may have several, changing addresses."""
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
        return (
            f"{LOCAL}:{self.path}" if self.scheme == LOCAL else f"{self.scheme}://{self.authority}{self.path}"
        )


@dataclasses.dataclass(frozen=True)
class Address:
    """One server: an endpoint and an IP address of its name."""

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
    if not isinstance(urls, (str, Sequence)):
        raise InvalidInput.refusing("url", type(urls).__qualname__, f"{ACCEPTED}; or a list of these")
    endpoints = tuple(
        dict.fromkeys(Endpoint.parse(url) for url in ([urls] if isinstance(urls, str) else urls))
    )
    if not endpoints:
        raise InvalidInput.refusing("url", "an empty list", ACCEPTED)
    return endpoints


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Resolver:
    """Looks up names in threads, because the C library's resolver cannot be interrupted.

    One look-up for each name at a time, shared by callers. Its result goes to `on_found`, also if no caller
    waits any more. A hung thread ends by itself. Safe to share between threads.
    """

    def __init__(self, on_found: Callable[[Endpoint, tuple[Address, ...]], None]) -> None:
        self._on_found = on_found
        self._lock = threading.Lock()
        self._under_way: dict[Endpoint, concurrent.futures.Future[None]] = {}

    def look_up(self, endpoint: Endpoint) -> concurrent.futures.Future[None]:
        """Start a look-up, or join a running one. The future raises ConnectionFailed."""
        with self._lock:
            future = self._under_way.get(endpoint)
            if future is None:
                future = self._under_way[endpoint] = concurrent.futures.Future()
                future.set_running_or_notify_cancel()  # a caller that gives up must not end it for all
                arguments = (endpoint, future)
                threading.Thread(
                    target=self._run, args=arguments, name="diptych-resolver", daemon=True
                ).start()
            return future

    def _run(self, endpoint: Endpoint, future: concurrent.futures.Future[None]) -> None:
        failure: ConnectionFailed | None = None
        try:
            found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
            addresses = tuple(dict.fromkeys(Address(endpoint, str(sockaddr[0])) for *_, sockaddr in found))
            self._on_found(endpoint, addresses)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that IDNA does not allow
            reason = (isinstance(error, OSError) and error.strerror) or error
            failure = ConnectionFailed(f"{endpoint}: {reason}")
            _log.warning("%s: the name could not be looked up: %s", endpoint, reason)
        with self._lock:
            del self._under_way[endpoint]
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)


# A call without a connection after this time tries another server, or again.
CONNECT_TIMEOUT_S = 2.0
# A name is looked up again after this, because pods change; gRPC's own resolver waits as long.
RESOLVE_EVERY_S = 30.0
# Pause for a failed server, doubling from the first to the last.
FIRST_REST_S = 0.5
LAST_REST_S = 10.0
# A server that accepts calls but answers none is down too; a single late answer is not enough.
TIMEOUTS_UNTIL_DOWN = 3

_log = logging.getLogger("diptych_client")


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
        """The endpoints whose names should be looked up now. One with addresses is returned once in
        RESOLVE_EVERY_S; its old addresses are used until the look-up ends."""
        if not self._stale_at_s:
            return []
        now_s = self._clock()
        with self._lock:
            stale = [endpoint for endpoint, at_s in self._stale_at_s.items() if at_s <= now_s]
            for endpoint in stale:
                if self._addresses[endpoint]:
                    self._stale_at_s[endpoint] = now_s + RESOLVE_EVERY_S
        return stale

    def has_addresses(self, endpoint: Endpoint) -> bool:
        return bool(self._addresses[endpoint])

    def update(self, endpoint: Endpoint, addresses: tuple[Address, ...]) -> None:
        with self._lock:
            is_news = set(addresses) != set(self._addresses[endpoint])
            self._addresses[endpoint] = addresses
            self._stale_at_s[endpoint] = self._clock() + RESOLVE_EVERY_S
            for gone in set(self._health).difference(*self._addresses.values()):
                del self._health[gone]
        if is_news:
            _log.info("%s: now at %s", endpoint, ", ".join(address.ip for address in addresses))

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(address for addresses in self._addresses.values() for address in addresses)

    def pick(self, tried: Collection[Address] = ()) -> Address:
        """The next server that is up, preferably one that this call has not tried. If all seem down, the
        one that
        was down longest."""
        with self._lock:
            addresses = self.addresses
            candidates = [address for address in addresses if address not in tried] or list(addresses)
            now_s = self._clock()
            self._turn += 1
            # In turn among these: the one after a down server must not get that server's share too.
            ready = [address for address in candidates if self._rests_until_s(address) <= now_s]
            if not ready:
                return min(candidates, key=self._rests_until_s)
            chosen = ready[self._turn % len(ready)]
            if self._rests_until_s(chosen):
                self._rest(chosen)  # this call tries it, the others wait for the result
            return chosen

    def has_other(self, tried: Collection[Address]) -> bool:
        """Whether an untried address is left that is not known to be down."""
        return self.num_others(tried) > 0

    def num_others(self, tried: Collection[Address]) -> int:
        """The number of untried addresses that are not known to be down."""
        with self._lock:
            return sum(
                address not in tried and not self._rests_until_s(address) for address in self.addresses
            )

    def report_answer(self, address: Address) -> None:
        """The server responded, perhaps with a refusal."""
        if address not in self._health:  # usually, so ordinary calls take no lock
            return
        with self._lock:
            health = self._health.pop(address, None)
        if health is not None and health.rests_until_s:
            _log.info("%s: up again", address)

    def report_failure(self, address: Address) -> None:
        """There was no connection, or no model behind it."""
        with self._lock:
            self._health[address].num_failures += 1
            self._rest(address)
            is_news = self._health[address].num_failures == 1
        if is_news:
            _log.warning("%s: down", address)

    def report_timeout(self, address: Address) -> None:
        with self._lock:
            health = self._health[address]
            health.num_timeouts += 1
            if health.num_timeouts >= TIMEOUTS_UNTIL_DOWN:
                health.num_failures += 1
                self._rest(address)
            is_news = health.num_timeouts == TIMEOUTS_UNTIL_DOWN
        if is_news:
            _log.warning("%s: down, %d calls in a row had no answer in time", address, TIMEOUTS_UNTIL_DOWN)

    def _rests_until_s(self, address: Address) -> float:
        health = self._health.get(address)
        return 0.0 if health is None else health.rests_until_s

    def _rest(self, address: Address) -> None:
        health = self._health[address]
        rest_s = min(LAST_REST_S, FIRST_REST_S * 2 ** max(0, min(health.num_failures, 10) - 1))
        health.rests_until_s = self._clock() + rest_s
