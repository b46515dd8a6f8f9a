"""Calls a Diptych classifier over gRPC or HTTP: `Client` and its twin `AsyncClient`, one tree of errors.

Importing this package loads no gRPC, Pillow, numpy or asyncio: they come with the first call that needs them.
"""

from typing import TYPE_CHECKING, Any

from diptych_client.answer import Answer, Explanation, Scored, Timings
from diptych_client.client import Client
from diptych_client.contract import ServerInfo
from diptych_client.conversation import Health
from diptych_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    InvalidInput,
    ModelNotReady,
    Overloaded,
    ServerFault,
)
from diptych_client.inputs import Limits
from diptych_client.retries import Retries
from diptych_client.tls import Tls

if TYPE_CHECKING:
    from diptych_client.async_client import AsyncClient

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DiptychError",
    "Explanation",
    "Health",
    "InvalidInput",
    "Limits",
    "ModelNotReady",
    "Overloaded",
    "Retries",
    "Scored",
    "ServerFault",
    "ServerInfo",
    "Timings",
    "Tls",
]


def __getattr__(name: str) -> Any:
    """AsyncClient when it is first asked for, because it imports asyncio."""
    if name == "AsyncClient":
        from diptych_client.async_client import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
