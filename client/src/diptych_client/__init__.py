"""Calls a Diptych classifier over gRPC or HTTP: `Client`, `AsyncClient`, and one tree of errors.

All public names are here. Modules with a leading underscore may change at any time.
Importing this package does not load gRPC, Pillow or numpy; the first call that needs them does.
"""

import logging
from typing import TYPE_CHECKING, Any

from diptych_client._answer import Answer, Explanation, Outcome, Scored, ServerInfo, Timings
from diptych_client._client import AsyncClient, Client
from diptych_client._conversation import Health
from diptych_client._environment import needs_extra
from diptych_client._errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    InvalidInput,
    ModelNotReady,
    NotAllowed,
    Overloaded,
    ServerFault,
)
from diptych_client._inputs import ImageInput, Item
from diptych_client._limits import Limits
from diptych_client._retries import Retries
from diptych_client._tls import Tls

if TYPE_CHECKING:
    from diptych_client._score import score_table

    __version__: str

# Silent until a program sets up logging.
logging.getLogger("diptych_client").addHandler(logging.NullHandler())

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DiptychError",
    "Explanation",
    "Health",
    "ImageInput",
    "InvalidInput",
    "Item",
    "Limits",
    "ModelNotReady",
    "NotAllowed",
    "Outcome",
    "Overloaded",
    "Retries",
    "Scored",
    "ServerFault",
    "ServerInfo",
    "Timings",
    "Tls",
    "score_table",
]


def __getattr__(name: str) -> Any:
    """Names that are loaded on first use: score_table needs the extra `score`, the version needs a file."""
    if name == "__version__":
        from importlib.metadata import version

        return version("diptych-client")
    if name == "score_table":
        with needs_extra("score"):
            from diptych_client._score import score_table

        return score_table
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
