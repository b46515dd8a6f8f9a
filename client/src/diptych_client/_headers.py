"""Headers of every request: bearer tokens, Triton's restricted-API keys, tracing ids.

Values are secrets: they appear in no repr, no error and no log.
"""

from __future__ import annotations

import collections
import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from diptych_client import _tracing
from diptych_client._errors import InvalidInput

Pairs = tuple[tuple[str, str], ...]
GivenHeaders = (
    Mapping[str, str] | Callable[[], Mapping[str, str]] | Callable[[], Awaitable[Mapping[str, str]]] | None
)

_NAME = re.compile(r"[a-z0-9_.-]+")  # gRPC's alphabet, which is smaller than HTTP's
_VALUE = re.compile(r"[\x20-\x7e]*")
_OURS = frozenset(("connection", "content-length", "content-type", "host", "te", "transfer-encoding"))
# Shorter values could be part of a message by chance.
_MIN_SECRET_LENGTH = 6
# A server may repeat a token that has since been renewed.
_NUM_SECRETS_KEPT = 64
_ACCEPTED = "a mapping, or a function that returns one"


class Headers:
    """Names are in lower case, as gRPC requires and HTTP allows.

    given  a mapping; or a function that returns one, called for every request, for tokens that expire. In an
           AsyncClient it may be asynchronous.
    """

    def __init__(self, given: GivenHeaders = None, *, may_be_async: bool = False) -> None:
        self._renew = given if callable(given) else None
        self.is_async = inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(
            getattr(given, "__call__", None)  # noqa: B004  (the method, to look at it)
        )
        if self.is_async and not may_be_async:
            raise InvalidInput.refusing("headers", "an asynchronous function", f"{_ACCEPTED} at once")
        self._fixed = () if self._renew is not None else checked_headers(given)
        self._secrets: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._keep_secrets(self._fixed)

    @property
    def has_function(self) -> bool:
        return self._renew is not None

    def renewed(self) -> Any:
        """The given function's result, to be awaited if `is_async`. Raises what it raises."""
        assert self._renew is not None
        return self._renew()

    def pairs(self, renewed: object = None, of_the_call: Pairs = ()) -> Pairs:
        """The headers to send. Those of the call override the client's, and both override OpenTelemetry's.

        renewed  the function's result, if there is one
        raises   InvalidInput
        """
        fixed = self._fixed
        if self._renew is not None:
            fixed = checked_headers(renewed, "a function that returns ")
            self._keep_secrets(fixed)
        if of_the_call:
            self._keep_secrets(of_the_call)
            fixed = _joined(of_the_call, fixed)
        traced = _tracing.headers()
        return _joined(fixed, _sendable(traced)) if traced else fixed

    def redact(self, message: str) -> str:
        """A message without the sent values, because servers and proxies may repeat them."""
        with self._lock:
            secrets = tuple(self._secrets)
        for secret in secrets:
            message = message.replace(secret, "***")
        return message

    def __repr__(self) -> str:
        return f"Headers({', '.join(name for name, _ in self._fixed)})"

    def _keep_secrets(self, pairs: Pairs) -> None:
        with self._lock:
            for _, value in pairs:
                for word in value.split():  # "Bearer TOKEN"
                    if len(word) >= _MIN_SECRET_LENGTH:
                        self._secrets[word] = None
                        self._secrets.move_to_end(word)
            while len(self._secrets) > _NUM_SECRETS_KEPT:
                self._secrets.popitem(last=False)


def checked_headers(given: object, found: str = "") -> Pairs:
    """Raises InvalidInput by name, never by value.

    found  the start of the error's description
    """
    if given is None and not found:
        return ()
    if not isinstance(given, Mapping):
        raise InvalidInput.refusing("headers", f"{found}{type(given).__qualname__}", _ACCEPTED)
    pairs = []
    for name, value in given.items():
        lowered = str(name).lower()
        if not _NAME.fullmatch(lowered) or lowered in _OURS or lowered.startswith("grpc-"):
            accepted = "letters, digits, '-', '_' and '.', and no header of the protocol itself"
            raise InvalidInput.refusing("headers", f"the name {name!r}", accepted)
        if lowered.endswith("-bin") or not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise InvalidInput.refusing("headers", f"a value of {name!r} that is not", "printable ASCII text")
        pairs.append((lowered, value.strip()))
    return tuple(pairs)


def _joined(first: Pairs, then: Pairs) -> Pairs:
    """Both together; the first one's value wins."""
    names = {name for name, _ in first}
    return (*first, *(pair for pair in then if pair[0] not in names))


def _sendable(traced: Pairs) -> Pairs:
    """The propagators' headers, with names in lower case (AWS X-Ray's have capitals). Invalid ones are left
    out,
    because tracing must not fail a call."""
    lowered = ((name.lower(), value.strip()) for name, value in traced)
    return tuple(
        (name, value)
        for name, value in lowered
        if _NAME.fullmatch(name) and name not in _OURS and _VALUE.fullmatch(value)
    )
