"""A pool of idle connections, with a limit on connections in use.

Knows no sockets. The blocking and the async HTTP transport share it; each passes its own kind of future.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

# httpx's default. More would exhaust a process's descriptors, not speed it up.
MAX_CONNECTIONS = 100


class Idle(Protocol):
    @property
    def idle_until_s(self) -> float:
        """When it is closed, on the monotonic clock."""
        ...


C = TypeVar("C", bound=Idle)


class Pool(Generic[C]):
    """Safe to share between threads: the lock is never held during a wait.

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
        """Take a place and return None; else a future to wait for, first come, first served."""
        with self._lock:
            if self._num_free:
                self._num_free -= 1
                return None
            waiter = self._new_waiter()
            self._waiters.append(waiter)
            return waiter

    def give_up(self, waiter: Any) -> None:
        """Stop waiting; a place that was already given goes to the next."""
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                return
        if not waiter.cancelled():  # a cancelled one was skipped
            self.leave()

    def leave(self) -> None:
        """Return the place, which goes to the longest waiting call."""
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
        """Keep a connection for its next use; False if the pool is closed."""
        with self._lock:
            if not self._is_closed:
                self._idle.append(connection)
            return not self._is_closed

    def take_expired(self, now_s: float) -> tuple[list[C], float | None]:
        """Connections idle for too long, to be closed, and when to check again; None: none is idle."""
        with self._lock:
            expired = []
            while self._idle and self._idle[0].idle_until_s <= now_s:
                expired.append(self._idle.popleft())
            return expired, self._idle[0].idle_until_s if self._idle else None

    def close(self) -> list[C]:
        """Keep no connection from now on. Returns the idle ones, to be closed."""
        with self._lock:
            self._is_closed = True
            idle = list(self._idle)
            self._idle.clear()
            return idle
