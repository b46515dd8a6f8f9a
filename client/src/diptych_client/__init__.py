"""Calls a Diptych classifier over gRPC or HTTP: `Client`, `Answer` and one tree of errors.

Importing this package loads no gRPC, Pillow or numpy: what a call needs is imported when the client is made.
"""

from diptych_client.answer import Answer
from diptych_client.client import Client
from diptych_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    InvalidInput,
    ModelNotReady,
    Overloaded,
    ServerFault,
)

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Client",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DiptychError",
    "InvalidInput",
    "ModelNotReady",
    "Overloaded",
    "ServerFault",
]
