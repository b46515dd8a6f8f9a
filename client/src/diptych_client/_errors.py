"""The tree of errors of a call, and the mapping from the wire to it.

    DiptychError
    ├── InvalidInput       the item or an argument is wrong (also a ValueError); do not retry
    ├── NotAllowed         a missing or expired token
    ├── ConnectionFailed   no server at that address, or the connection broke
    ├── DeadlineExceeded   no answer in time (also a TimeoutError)
    ├── Overloaded         the server cannot answer in time; retry later
    ├── ModelNotReady      the model is not loaded, or the server is stopping
    └── ServerFault        the server broke, or its answer is invalid

Knows status codes and Triton's messages; must not know sockets or gRPC objects.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable


class DiptychError(Exception):
    """Any failure of a call.

    message       the server's message if it answered, without Triton's prefixes
    request_id    the id in the server's logs and traces; None if nothing was sent
    status        HTTP status such as '503', or gRPC status such as 'UNAVAILABLE'; None without an answer
    server        the last address, such as 'grpc://triton:8001 at 10.0.0.7'; None if there was none
    num_attempts  number of attempts
    """

    status: str | None = None
    server: str | None = None
    num_attempts: int = 0
    # Seconds that the server asks us to wait; None if it does not say.
    retry_after_s: float | None = None

    def __init__(self, message: str, request_id: str | None = None) -> None:
        # All arguments are in `args`, so that errors can be pickled out of a worker process.
        super().__init__(message, request_id)
        self.message = message
        self.request_id = request_id

    def redact(self, redact: Callable[[str], str]) -> None:
        """Change the message in place, to remove secrets that a server repeated."""
        self.message = redact(self.message)
        self.args = (self.message, *self.args[1:])

    def __str__(self) -> str:
        return self.message if self.request_id is None else f"{self.message} [request {self.request_id}]"


class InvalidInput(DiptychError, ValueError):
    """The caller's error: an item or an argument that cannot be used.

    field  'image', 'text', 'image and text', or an argument's name; None if unknown
    found  what was found, as text; None if unknown
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
        """Whether the item itself is refused, not an argument, a header or the whole request: other items may
        still be answered, and this item must be changed."""
        return self.field in ITEM_FIELDS

    @classmethod
    def refusing(cls, field: str, found: str, accepted: str) -> InvalidInput:
        """Where, what was found, what is accepted: the same form as in the server's preprocessing."""
        return cls(f"{field}: found {found}; accepted: {accepted}", field=field, found=found)


ITEM_FIELDS = ("image", "text", "image and text", "item")


class NotAllowed(DiptychError):
    """The server refuses access: a missing or expired token, or an API that needs a key."""


class ConnectionFailed(DiptychError):
    """No server at that address, a connection that broke, or one that speaks another protocol."""


class DeadlineExceeded(DiptychError, TimeoutError):
    """The call's total time ran out, here or in the server's queue."""

    def __init__(self, message: str, request_id: str | None = None) -> None:
        super().__init__(message, request_id)
        self.errno = self.strerror = None  # OSError takes two arguments for these


class Overloaded(DiptychError):
    """The server refused: its queue is full, or the wait would be too long."""


class ModelNotReady(DiptychError):
    """The server answers, but not for this model: not loaded yet, unknown, or stopping."""


class ServerFault(DiptychError):
    """The server's own error, or an invalid answer."""


# Our error, then gRPC's codes, then HTTP's statuses: those of Triton's HTTP front end, and those of proxies.
_CODE_OF_HTTP_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    407: "UNAUTHENTICATED",
    408: "UNAVAILABLE",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_ERROR_OF_CODE: dict[str, type[DiptychError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "UNAUTHENTICATED": NotAllowed,
    "PERMISSION_DENIED": NotAllowed,
    "NOT_FOUND": ModelNotReady,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": ConnectionFailed,
    "CANCELLED": ConnectionFailed,  # the channel was closed during the call
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}

# Waited too long in Triton's queue: for the caller's deadline, or for the server's limit.
QUEUE_TIMEOUT = "Request timeout expired"

# gRPC's limit on the size of a message.
_TOO_LARGE = "message larger than max"

# The code is the same (24.10: UNAVAILABLE for the first six); only the messages differ (docs/triton.md, 20).
_ERROR_OF_WORDS: tuple[tuple[str, type[DiptychError]], ...] = (
    ("Exceeds maximum queue size", Overloaded),
    (QUEUE_TIMEOUT, DeadlineExceeded),
    ("unknown model", ModelNotReady),
    ("not at ready state", ModelNotReady),
    ("stopped accepting new inference requests", ModelNotReady),
    ("Server is stopping", ModelNotReady),
    ("is restricted, expecting header", NotAllowed),  # an API that needs a key
    (_TOO_LARGE, InvalidInput),  # which says RESOURCE_EXHAUSTED
)

# Triton's INVALID_ARGUMENT that no item causes: another model, or an old export.
_NOT_OUR_MODEL = "unexpected inference output"

_PREFIXES = re.compile(r"^(\[request id: [^\]]*\] |in ensemble '[^']*', )+")
_FIELD = re.compile(r"^preprocess: (image and text|image|text): found (.*?)(; accepted: |$)", re.DOTALL)


# Triton puts the request's id before its error messages.
_REQUEST_ID = re.compile(r"^\[request id: ([^\]]*)\] ")
_LONGEST_RETRY_AFTER_S = 1e6


def error_from_grpc(
    code: str, details: str, request_id: str | None, retry_after: str | None = None
) -> DiptychError:
    """Our error for a gRPC status; `code` is a name such as 'UNAVAILABLE'."""
    message = details or f"gRPC status {code} without a message"
    return _error(code, code, message, request_id, retry_after)


def error_from_http(
    status: int, body: bytes, request_id: str | None, retry_after: str | None = None
) -> DiptychError:
    """Our error for an HTTP status; the body is Triton's {"error": ...}, or a proxy's."""
    try:
        message = json.loads(body)["error"]
        if not isinstance(message, str):
            raise TypeError(type(message))
    except (ValueError, LookupError, TypeError, RecursionError):
        message = f"HTTP {status}: {body[:200].decode('utf-8', 'replace').strip() or 'empty answer'}"
    code = _CODE_OF_HTTP_STATUS.get(status, "INTERNAL")
    return _error(str(status), code, message, request_id, retry_after)


def is_of_another_request(message: str, request_id: str | None) -> bool:
    """Whether an error names a request that is not ours."""
    named = _REQUEST_ID.match(message)
    return named is not None and request_id is not None and named[1] not in ("", request_id)


def wrong_answer(found: object, request_id: str | None) -> ConnectionFailed:
    """A proxy or a connection returned another request's answer. A retry on another connection helps."""
    return ConnectionFailed(f"an answer to another request ({found!r:.100}) came back", request_id)


def _error(
    status: str, code: str, message: str, request_id: str | None, retry_after: str | None
) -> DiptychError:
    if is_of_another_request(message, request_id):
        return wrong_answer(_REQUEST_ID.match(message)[1], request_id)  # type: ignore[index]
    error = _typed_error(status, code, _PREFIXES.sub("", message), request_id)
    error.status = status
    with contextlib.suppress(ValueError):  # HTTP also allows a date; then we choose the pause
        seconds = float(retry_after or "")
        if 0 <= seconds <= _LONGEST_RETRY_AFTER_S:
            error.retry_after_s = seconds
    return error


def _typed_error(status: str, code: str, message: str, request_id: str | None) -> DiptychError:
    kind = _ERROR_OF_CODE.get(code, ServerFault)
    if kind is InvalidInput and _NOT_OUR_MODEL in message:
        return ServerFault(
            f"{message}. Is this a Diptych repository? Export it again if it is old", request_id
        )
    if kind not in (InvalidInput, NotAllowed):
        kind = next((by_words for words, by_words in _ERROR_OF_WORDS if words in message), kind)
    if kind is InvalidInput and (item := _FIELD.match(message)):
        return InvalidInput(message, request_id, item[1], item[2])
    if kind is InvalidInput and (status == "413" or _TOO_LARGE in message):
        return InvalidInput(message, request_id, "image and text")  # a smaller item may pass
    return kind(message, request_id)
