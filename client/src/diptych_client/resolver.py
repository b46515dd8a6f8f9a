"""Finds the addresses behind a name, within a deadline that the C library's resolver knows nothing of."""

from __future__ import annotations

import socket
import threading
from typing import Any

from diptych_client.deadline import Deadline
from diptych_client.endpoint import Address, Endpoint
from diptych_client.errors import ConnectionFailed


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
