"""Connections that wait for their next use, and a limit on how many are in use at once.

Knows no sockets. The blocking and the async HTTP transport share it; each brings the kind of future that its
callers wait with.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

# httpx's default. More would rather exhaust a process's descriptors than be served faster.
MAX_CONNECTIONS = 100


class Idle(Protocol):
    @property
    def idle_until_s(self) -> float:
        """When it is closed, on the monotonic clock."""
        ...


C = TypeVar("C", bound=Idle)


class Pool(Generic[C]):
    """Safe to share between threads: the lock is held for moments, never while anybody waits.

    new_waiter  makes a future (of concurrent.futures, or the event loop's)
    """

    def __init__(self, new_waiter: Callable[[], Any], limit: int = MAX_CONNECTIONS) -> None:
        self._new_waiter = new_waiter
        self._num_free = limit
        self._idle: collections.deque[C] = collections.deque()  # the one used last is at the end
        self._waiters: collections.deque[Any] = collections.deque()
        self._lock = threading.Lock()
        self._is_closed = False

    def enter(self) -> Any:
        """Take a place; None where there is one. Else a future to wait for: first come, first served."""
        with self._lock:
            if self._num_free:
                self._num_free -= 1
                return None
            waiter = self._new_waiter()
            self._waiters.append(waiter)
            return waiter

    def give_up(self, waiter: Any) -> None:
        """Wait no longer; a place that has been given meanwhile goes to the next."""
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                return
        if not waiter.cancelled():  # a cancelled one was passed over
            self.leave()

    def leave(self) -> None:
        """Give the place back, to the one who has waited longest."""
        with self._lock:
            while self._waiters:
                waiter = self._waiters.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return
            self._num_free += 1

    def take_idle(self) -> C | None:
        """The connection used last, if any."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def put_idle(self, connection: C) -> bool:
        """Keep a connection for its next use; False where the pool is closed."""
        with self._lock:
            if not self._is_closed:
                self._idle.append(connection)
            return not self._is_closed

    def take_expired(self, now_s: float) -> tuple[list[C], float | None]:
        """Those that have idled for too long, to be closed, and when to look again; None: nothing idles."""
        with self._lock:
            expired = []
            while self._idle and self._idle[0].idle_until_s <= now_s:
                expired.append(self._idle.popleft())
            return expired, self._idle[0].idle_until_s if self._idle else None

    def close(self) -> list[C]:
        """Keep nothing from now on. Returns what idled, to be closed."""
        with self._lock:
            self._is_closed = True
            idle = list(self._idle)
            self._idle.clear()
            return idle
