"""What goes with every request beside the item: bearer tokens, Triton's restricted-API keys, tracing ids.

Values are secrets: they appear in no repr, no error and no log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from diptych_client import _tracing
from diptych_client._errors import InvalidInput

GivenHeaders = Mapping[str, str] | Callable[[], Mapping[str, str]] | None

_NAME = re.compile(r"[a-z0-9!#$&'*+.^_`|~-]+")  # of HTTP, less what gRPC refuses
_VALUE = re.compile(r"[\x20-\x7e]*")
_OURS = frozenset(("connection", "content-length", "content-type", "host", "te", "transfer-encoding"))
# Shorter words could stand in a message by chance.
_MIN_SECRET_LENGTH = 6


class Headers:
    """Names in lower case, as gRPC wants them and HTTP does not mind.

    given  a mapping; or a function that returns one, called for every request, for tokens that expire
    """

    def __init__(self, given: GivenHeaders = None) -> None:
        self._renew: Callable[[], Mapping[str, str]] | None = given if callable(given) else None
        self._pairs = _checked(given) if isinstance(given, Mapping) else ()
        if given is not None and not callable(given) and not isinstance(given, Mapping):
            accepted = "a mapping, or a function that returns one"
            raise InvalidInput.refusing("headers", type(given).__qualname__, accepted)

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """What to send now. Raises InvalidInput, and whatever a given function raises.

        The caller's own `traceparent` goes before the one of OpenTelemetry's present span.
        """
        if self._renew is not None:
            self._pairs = _checked(self._renew())
        traced = _tracing.headers()
        if not traced:
            return self._pairs
        given = {name for name, _ in self._pairs}
        return (*self._pairs, *(pair for pair in traced if pair[0] not in given))

    def redact(self, message: str) -> str:
        """A message without the values that were sent, for servers and proxies that repeat them."""
        for _, value in self._pairs:
            for word in value.split():  # "Bearer TOKEN"
                if len(word) >= _MIN_SECRET_LENGTH:
                    message = message.replace(word, "***")
        return message

    def __repr__(self) -> str:
        return f"Headers({', '.join(name for name, _ in self._pairs)})"


def _checked(given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Raises InvalidInput by name, never by value."""
    pairs = []
    for name, value in given.items():
        lowered = str(name).lower()
        if not _NAME.fullmatch(lowered) or lowered in _OURS or lowered.startswith("grpc-"):
            raise InvalidInput.refusing(
                "headers", f"the name {name!r}", "HTTP header names that are not ours"
            )
        if lowered.endswith("-bin") or not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise InvalidInput.refusing("headers", f"a value of {name!r} that is not", "printable ASCII text")
        pairs.append((lowered, value.strip()))
    return tuple(pairs)
