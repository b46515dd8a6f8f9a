"""What the logic asks of whoever does the I/O: the vocabulary between generators and the two clients.

A generator yields a step, is sent its outcome or thrown its DiptychError, and returns the result at its end.
So the order of things is written once, and `Client` and `AsyncClient` only carry the steps out: the way of
httpx's authentication flows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any, TypeVar, Union

from diptych_client.contract import Request
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Address, Endpoint

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Infer:
    """Outcome: Reply."""

    address: Address
    request: Request
    deadline: Deadline


@dataclasses.dataclass(frozen=True)
class Describe:
    """Outcome: ServerInfo."""

    address: Address
    deadline: Deadline


@dataclasses.dataclass(frozen=True)
class Resolve:
    """Outcome: tuple[Address, ...]."""

    endpoint: Endpoint
    deadline: Deadline


@dataclasses.dataclass(frozen=True)
class Pause:
    """Outcome: None."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Together:
    """Run all at once. Outcome: list of their results, in order; the first error, where there is one."""

    parts: tuple[Steps[Any], ...]


Step = Union[Infer, Describe, Resolve, Pause, Together]
Steps = Generator[Step, Any, T]
