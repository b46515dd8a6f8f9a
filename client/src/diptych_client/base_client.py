"""What both clients are made of, and all of it that does no I/O."""

from __future__ import annotations

import abc
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Optional, TypeVar, Union

from diptych_client.conversation import Conversation
from diptych_client.deadline import Deadline
from diptych_client.endpoint import LOCAL, Address, parse_urls
from diptych_client.errors import ConnectionFailed, InvalidInput
from diptych_client.exchange import Exchange
from diptych_client.headers import GivenHeaders, Headers
from diptych_client.inputs import Fetch, InputRules, Limits
from diptych_client.retries import Retries
from diptych_client.transport import Wire

if TYPE_CHECKING:
    from diptych_client.tls import Tls

# An answer takes tens of milliseconds; a caller who waits for five seconds has an outage, not a slow answer.
DEFAULT_TIMEOUT_S = 5.0
# A server loads its models in seconds to minutes.
READY_TIMEOUT_S = 120.0


AnyTransport = TypeVar("AnyTransport")


class BaseClient(abc.ABC, Generic[AnyTransport]):
    """Not for use by itself: `Client` and `AsyncClient` carry out what it decides."""

    def __init__(
        self,
        url: Union[str, Sequence[str]],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: GivenHeaders = None,
        tls: Optional[Tls] = None,
        retries: Optional[Retries] = None,
        min_score: float = 0.0,
        shrink_to_px: Optional[int] = None,
        limits: Optional[Limits] = None,
        fetch: Optional[Fetch] = None,
    ) -> None:
        """Opens no connection yet; a local repository is loaded at once.

        url           grpc://host:port or http://host:port, grpcs:// or https:// for TLS, local:PATH to run an
                      exported repository in this process; or a list of URLs, to be used in turn
        timeout_s     the total time that one call may take, retries included, unless the call says otherwise
        headers       sent with every request: a mapping, or a function that returns one for each request
        tls           whom to trust and who we are, for grpcs:// and https://
        retries       how failed requests are sent again; Retries(max_attempts=1): never
        min_score     below this probability an answer's label is None, unless the call says otherwise
        shrink_to_px  scale pictures down to this longest side before sending. Off by default: the answer to
                      a scaled picture differs a little. Twice the model's image size loses next to nothing
        limits        what is refused before sending
        fetch         gets the bytes behind a URL. Without it URLs are refused: whoever fetches what strangers
                      name can be led into the private network (server-side request forgery)
        raises        InvalidInput
        """
        Deadline(timeout_s)  # refuses what is no time
        self._endpoints = parse_urls(url)
        self._timeout_s = timeout_s
        self._min_score = _checked_score(min_score)
        self._rules = InputRules(limits or Limits(), shrink_to_px, fetch)
        self._wire = Wire(Headers(headers), tls)
        exchange = Exchange(self._endpoints, retries or Retries(), self._wire.headers.redact)
        self._conversation = Conversation(exchange)
        self._balancer = exchange.balancer
        self._is_closed = False
        self._transports: dict[Address, AnyTransport] = {}
        self._lock = threading.Lock()
        for endpoint in self._endpoints:
            if endpoint.scheme == LOCAL:
                self._transport_to(Address(endpoint, endpoint.host))

    @abc.abstractmethod
    def _open(self, address: Address) -> AnyTransport: ...

    def _transport_to(self, address: Address) -> AnyTransport:
        transport = self._transports.get(address)
        if transport is None:
            with self._lock:
                if self._is_closed:  # under a call in flight
                    raise ConnectionFailed(f"{address}: the client was closed")
                transport = self._transports.get(address) or self._open(address)
                self._transports[address] = transport
        return transport

    def _take_abandoned(self) -> list[AnyTransport]:
        """Remove the transports to addresses that their name no longer stood for when it was last looked up:
        calls that were in flight then have ended since."""
        with self._lock:
            gone = set(self._transports).difference(self._balancer.addresses)
            return [self._transports.pop(address) for address in gone]

    def _take_all(self) -> list[AnyTransport]:
        """Remove all transports, for good."""
        with self._lock:
            self._is_closed = True
            transports = list(self._transports.values())
            self._transports.clear()
            return transports

    def __repr__(self) -> str:
        urls = [str(endpoint) for endpoint in self._endpoints]
        shown = repr(urls[0] if len(urls) == 1 else urls)
        return f"{type(self).__name__}({shown}, timeout_s={self._timeout_s:g})"

    def _start(self, timeout_s: Optional[float]) -> Deadline:
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed")
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    def _score_of(self, min_score: Optional[float]) -> float:
        return self._min_score if min_score is None else _checked_score(min_score)


def _checked_score(min_score: float) -> float:
    if not 0 <= min_score <= 1:
        raise InvalidInput.refusing("min_score", repr(min_score), "a probability, 0 to 1")
    return min_score
