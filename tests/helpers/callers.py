"""Callers that ask a server for answers without a pause, until the end of a `with`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from diptych_client import Retries
from diptych_serving.traffic import NO_RETRIES, Call, ClosedLoop, Item, classifying


def calling(
    urls: Sequence[str | Sequence[str]],
    *,
    num_callers: int = 8,
    timeout_s: float = 30.0,
    retries: Retries = NO_RETRIES,
    **options: Any,
) -> ClosedLoop[Item]:
    """urls     dealt to the callers in turn: a server each, or a list of servers
    options  of `ClosedLoop`
    """
    callers = [
        functools.partial(classifying, urls[number % len(urls)], timeout_s=timeout_s, retries=retries)
        for number in range(num_callers)
    ]
    return ClosedLoop(callers, [(b"", "a red cat")], **options)


def is_refused(call: Call) -> bool:
    """By a server that drains or has ended."""
    return call.outcome == "ModelNotReady"
