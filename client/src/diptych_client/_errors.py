"""What can go wrong with a call, as one tree, and the one place that maps the wire to it.

    DiptychError
    ├── InvalidInput       the item or the argument; sending it again cannot help
    ├── ConnectionFailed   nobody answered at that address, or the connection broke
    ├── DeadlineExceeded   no answer within the call's time
    ├── Overloaded         the server's queue is full; back off
    ├── ModelNotReady      the server is up, but the model is not loaded or the server is stopping
    └── ServerFault        the server broke, or answered something that is not an answer

Knows status codes and Triton's wording; must not know sockets or gRPC objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable


class DiptychError(Exception):
    """Any failure of a call.

    message     what happened, in the server's own words where it spoke, without Triton's prefixes
    request_id  the id that the server's logs and traces carry; None where nothing was sent
    """

    def __init__(self, message: str, request_id: str | None = None) -> None:
        # All arguments go into `args`, so that errors survive pickling on their way out of a worker process.
        super().__init__(message, request_id)
        self.message = message
        self.request_id = request_id

    def redact(self, redact: Callable[[str], str]) -> None:
        """Reword in place, to keep secrets that a server repeated out of logs."""
        self.message = redact(self.message)
        self.args = (self.message, *self.args[1:])

    def __str__(self) -> str:
        return self.message if self.request_id is None else f"{self.message} [request {self.request_id}]"


class InvalidInput(DiptychError):
    """The caller's error.

    field  'image', 'text', 'image and text', or an argument's name; None where the server did not say
    found  what was there, in words; None where the server did not say
    """

    def __init__(
        self,
        message: str,
        request_id: str | None = None,
        field: str | None = None,
        found: str | None = None,
    ) -> None:
        super().__init__(message, request_id)
        self.args = (message, request_id, field, found)
        self.field = field
        self.found = found

    def redact(self, redact: Callable[[str], str]) -> None:
        super().redact(redact)
        self.found = None if self.found is None else redact(self.found)
        self.args = (self.message, self.request_id, self.field, self.found)

    @property
    def is_about_item(self) -> bool:
        """Whether the item itself is refused, and not an argument, a header or the whole request: other items
        may still be answered, and the one who sent this item must change it."""
        return self.field in ITEM_FIELDS

    @classmethod
    def refusing(cls, field: str, found: str, accepted: str) -> InvalidInput:
        """Where, what was found, what is accepted: the server's preprocessing words its errors the same."""
        return cls(f"{field}: found {found}; accepted: {accepted}", field=field, found=found)


ITEM_FIELDS = ("image", "text", "image and text", "item")


class ConnectionFailed(DiptychError):
    """No server at that address, a connection that broke, or one that speaks another protocol."""


class DeadlineExceeded(DiptychError):
    """The call's total time ran out, here or in the server's queue."""


class Overloaded(DiptychError):
    """The server refused: its queue is full, or longer than it lets anybody wait."""


class ModelNotReady(DiptychError):
    """The server answers, but not for this model now: not loaded yet, unknown, or stopping."""


class ServerFault(DiptychError):
    """The server's own error, or an answer that breaks the contract."""


# Ours, then gRPC's, then HTTP's: Triton's HTTP front end writes its codes as these statuses, and the rest
# are what proxies in front of it say.
_CODE_OF_HTTP_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_ERROR_OF_CODE: dict[str, type[DiptychError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "UNAUTHENTICATED": InvalidInput,
    "PERMISSION_DENIED": InvalidInput,
    "NOT_FOUND": ModelNotReady,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": ConnectionFailed,
    "CANCELLED": ConnectionFailed,  # the channel was closed under the call
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}

_ABOUT_HEADERS = ("UNAUTHENTICATED", "PERMISSION_DENIED")

# Waited in Triton's queue for longer than allowed: by the caller's deadline, or by the server's own limit.
QUEUE_TIMEOUT = "Request timeout expired"

# The code alone does not tell these apart (24.10 says UNAVAILABLE for the first six): the words do.
_ERROR_OF_WORDS: tuple[tuple[str, type[DiptychError]], ...] = (
    ("Exceeds maximum queue size", Overloaded),
    (QUEUE_TIMEOUT, DeadlineExceeded),
    ("unknown model", ModelNotReady),
    ("not at ready state", ModelNotReady),
    ("stopped accepting new inference requests", ModelNotReady),
    ("Server is stopping", ModelNotReady),
    ("is restricted, expecting header", InvalidInput),  # an API that is closed to those without its key
    ("message larger than max", InvalidInput),  # gRPC's size limit, which says RESOURCE_EXHAUSTED
)

_PREFIXES = re.compile(r"^(\[request id: [^\]]*\] |in ensemble '[^']*', )+")
_FIELD = re.compile(r"^preprocess: (image and text|image|text): found (.*?)(; accepted: |$)", re.DOTALL)


def error_from_grpc(code: str, details: str, request_id: str | None) -> DiptychError:
    """Ours for a gRPC status: `code` by name, as in 'UNAVAILABLE'."""
    message = _PREFIXES.sub("", details) or f"gRPC status {code} without a message"
    return _error(code, message, request_id)


def error_from_http(status: int, body: bytes, request_id: str | None) -> DiptychError:
    """Ours for an HTTP status: the body is Triton's {"error": ...}, or whatever a proxy wrote."""
    try:
        message = _PREFIXES.sub("", json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        message = f"HTTP {status}: {body[:200].decode('utf-8', 'replace').strip() or 'empty answer'}"
    return _error(_CODE_OF_HTTP_STATUS.get(status, "INTERNAL"), message, request_id)


def _error(code: str, message: str, request_id: str | None) -> DiptychError:
    kind = _ERROR_OF_CODE.get(code, ServerFault)
    if kind is not InvalidInput:
        kind = next((by_words for words, by_words in _ERROR_OF_WORDS if words in message), kind)
    if kind is not InvalidInput:
        return kind(message, request_id)
    if item := _FIELD.match(message):
        return InvalidInput(message, request_id, item[1], item[2])
    is_about_headers = code in _ABOUT_HEADERS or "expecting header" in message
    return InvalidInput(message, request_id, "headers" if is_about_headers else None)
