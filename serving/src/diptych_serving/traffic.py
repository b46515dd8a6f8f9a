"""Sends requests and returns what became of each: a list of calls. It judges nothing.

Closed loop: each of some callers sends its next request when its last one has ended. A server that stalls is
then sent less. Open loop: calls start at instants that are fixed beforehand, whether others have ended or
not, and their time counts from there. `send_from_another_process` keeps the CPU time and the threads of the
load away from the process that measures.

Needs the client and the standard library alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from diptych_client import AsyncClient, Client, Retries
from diptych_serving.errors import UserError

TIMEOUT_S = 60.0
POLL_S = 0.02
# Above the longest timeout of a call.
HANG_S = 90.0
NO_RETRIES = Retries(max_attempts=1)

Item = tuple[bytes, str]  # an image file and a text; empty where absent
T = TypeVar("T")
Send = Callable[[T], object]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call. Times are of `time.monotonic`, which all processes of a machine share.

    item         its index
    start_s      when it was made; in an open loop, when it was due
    outcome      the type of what came back: Answer, or the error's
    is_answered  whether no error was raised
    result       the answer or the error; where those are not kept, the error's text
    """

    item: int
    start_s: float
    end_s: float
    outcome: str
    is_answered: bool
    result: Any = None

    @property
    def latency_ms(self) -> float:
        return 1000 * (self.end_s - self.start_s)


def outcomes(calls: Iterable[Call]) -> Counter[str]:
    """How many calls ended how."""
    return Counter(call.outcome for call in calls)


class ClosedLoop(Generic[T]):
    """A context manager: inside the `with`, callers send; each has made one call before it begins.

    calls      in the order of their ends
    num_begun  how many calls were made, those included that have not ended
    """

    def __init__(
        self,
        callers: Sequence[Callable[[], AbstractContextManager[Send[T]]]],
        items: Sequence[T],
        *,
        pause_s: float = 0.0,
        num_calls: int | None = None,
        stops_at: Callable[[Call], bool] = lambda _: False,
        keeps_results: bool = True,
    ) -> None:
        """callers     one thread each, in which it is opened and closed: a connection of its own, or `shared`
        items          sent in turn
        pause_s        of each caller between two calls
        num_calls      of all callers together; None: until the end of the `with`
        stops_at       whether a caller stops after this call
        keeps_results  False for many calls: answers and errors take memory
        """
        self.calls: list[Call] = []
        self.num_begun = 0
        self._items, self._pause_s, self._num_calls = items, pause_s, num_calls
        self._stops_at, self._keeps_results = stops_at, keeps_results
        self._lock, self._is_over = threading.Lock(), threading.Event()
        self._failures: list[BaseException] = []
        self._are_ready = threading.Barrier(len(callers) + 1)
        self._threads = [
            threading.Thread(target=self._guard, args=(caller,), daemon=True) for caller in callers
        ]

    def __enter__(self) -> ClosedLoop[T]:
        for thread in self._threads:
            thread.start()
        with contextlib.suppress(threading.BrokenBarrierError):
            self._are_ready.wait()
        self._raise_failure()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self.join()

    def join(self) -> None:
        """Wait for callers that stop by themselves.

        raises  what ended a caller, or TimeoutError where a call hangs
        """
        for thread in self._threads:
            thread.join(HANG_S)
            if thread.is_alive():
                raise TimeoutError(f"a call has not ended within {HANG_S:g} s")
        self._raise_failure()

    def wait_for_answers(self, num: int) -> bool:
        """Wait until that many more answers have come. Returns whether they have."""
        start, ends_at_s = len(self.calls), time.monotonic() + HANG_S
        while time.monotonic() < ends_at_s:
            if sum(call.is_answered for call in self.calls[start:]) >= num:
                return True
            time.sleep(POLL_S)
        return False

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]

    def _guard(self, caller: Callable[[], AbstractContextManager[Send[T]]]) -> None:
        try:
            with caller() as send:
                goes_on = self._call(send)
                self._are_ready.wait()
                while goes_on and not self._is_over.is_set():
                    if self._pause_s and self._is_over.wait(self._pause_s):
                        return
                    goes_on = self._call(send)
        except threading.BrokenBarrierError:
            pass  # another caller could not be opened
        except BaseException as error:
            self._failures.append(error)
            self._are_ready.abort()

    def _call(self, send: Send[T]) -> bool:
        """Make one call. Returns whether the caller makes another."""
        with self._lock:
            number = self.num_begun
            if number == self._num_calls:
                return False
            self.num_begun += 1
        index = number % len(self._items)
        start_s = time.monotonic()
        result: object
        try:
            result, is_answered = send(self._items[index]), True
        except Exception as error:
            result, is_answered = error, False
        end_s = time.monotonic()
        outcome = type(result).__name__
        kept = result if self._keeps_results else None if is_answered else str(result)
        call = Call(index, start_s, end_s, outcome, is_answered, kept)
        self.calls.append(call)
        return not self._stops_at(call)


def shared(send: Send[T]) -> Callable[[], AbstractContextManager[Send[T]]]:
    """A caller that uses what others use too."""
    return lambda: contextlib.nullcontext(send)


@contextlib.contextmanager
def classifying(
    url: str | Sequence[str], *, timeout_s: float = TIMEOUT_S, retries: Retries | None = None
) -> Iterator[Send[Item]]:
    """Our client, as what sends an item."""
    with Client(url, timeout_s=timeout_s, retries=retries or Retries()) as client:
        yield lambda item: client.classify(image=item[0] or None, text=item[1] or None)


@contextlib.asynccontextmanager
async def classifying_async(
    url: str | Sequence[str], *, timeout_s: float = TIMEOUT_S, retries: Retries | None = None
) -> AsyncIterator[Callable[[Item], Awaitable[object]]]:
    """The same for an open loop. The labels have been asked for already."""
    async with AsyncClient(url, timeout_s=timeout_s, retries=retries or Retries()) as client:
        await client.labels(timeout_s=TIMEOUT_S)
        yield lambda item: client.classify(image=item[0] or None, text=item[1] or None)


async def send_on_time(
    send: Callable[[T], Awaitable[object]], items: Sequence[T], offsets_s: Iterable[float]
) -> list[Call]:
    """An open loop: one call at each of these seconds from now, items in turn. Returns when all ended."""
    begin_s = time.monotonic()
    calls: list[Call] = []

    async def call(index: int, due_s: float) -> None:
        result: object
        try:
            result, is_answered = await send(items[index]), True
        except Exception as error:
            result, is_answered = error, False
        calls.append(Call(index, due_s, time.monotonic(), type(result).__name__, is_answered, result))

    tasks = []
    for number, offset_s in enumerate(offsets_s):
        await asyncio.sleep(max(0.0, begin_s + offset_s - time.monotonic()))
        tasks.append(asyncio.create_task(call(number % len(items), begin_s + offset_s)))
    await asyncio.gather(*tasks)
    return calls


def constant(calls_per_s: float, duration_s: float) -> Iterator[float]:
    """Offsets of calls at equal distances, in seconds."""
    for number in range(int(calls_per_s * duration_s)):
        yield number / calls_per_s


def poisson(calls_per_s: float, duration_s: float, seed: int = 0) -> Iterator[float]:
    """Offsets of calls of many independent callers, in seconds; the same for the same seed."""
    source, offset_s = random.Random(seed), 0.0
    while offset_s < duration_s:
        yield offset_s
        offset_s += source.expovariate(calls_per_s)


ARRIVALS = {"constant": constant, "poisson": poisson}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What another process is to send. Give `num_callers` for a closed loop, or else `calls_per_s`.

    url      of a server, or several that share the calls
    items    a file that `save_items` wrote
    caller   of a closed loop: 'diptych', or 'MODULE:FUNCTION' where the function takes the URL and makes a
             context manager of what sends an item
    retries  whether our client sends requests again that failed
    """

    url: str | Sequence[str]
    items: Path
    duration_s: float
    warmup_s: float = 1.0
    num_callers: int = 0
    calls_per_s: float = 0.0
    arrivals: str = "poisson"
    caller: str = "diptych"
    timeout_s: float = TIMEOUT_S
    retries: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """All calls of a load, those of the warm-up included.

    begin_s, end_s  what is to be measured: after the warm-up, until no more calls were made
    cpu_s           of the process that sent them, in that time
    """

    calls: list[Call]
    begin_s: float
    end_s: float
    cpu_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.begin_s

    @property
    def num_errors(self) -> int:
        return sum(not call.is_answered for call in self.calls)


def send_from_another_process(traffic: Traffic) -> Recording:
    """Raises UserError where the load could not be made."""
    job = json.dumps({**dataclasses.asdict(traffic), "items": str(traffic.items)})
    command = [sys.executable, "-m", "diptych_serving.traffic"]
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{traffic.url}: the load could not be made: {done.stderr.strip().splitlines()[-1:]}")
    found = json.loads(done.stdout)
    return Recording(**{**found, "calls": [Call(*row) for row in found["calls"]]})


def send_from_here(traffic: Traffic) -> Recording:
    """The same in this process."""
    return _send_in_turn(traffic) if traffic.num_callers else asyncio.run(_send_on_time(traffic))


def _send_in_turn(traffic: Traffic) -> Recording:
    items = load_items(traffic.items)
    with contextlib.ExitStack() as stack:
        if traffic.caller == "diptych":
            retries = None if traffic.retries else NO_RETRIES
            client = classifying(traffic.url, timeout_s=traffic.timeout_s, retries=retries)
            caller = shared(stack.enter_context(client))
        else:
            module, _, function = traffic.caller.partition(":")
            open_caller = getattr(import_module(module), function)
            caller = lambda: open_caller(traffic.url)  # noqa: E731
        loop = stack.enter_context(ClosedLoop([caller] * traffic.num_callers, items, keeps_results=False))
        time.sleep(traffic.warmup_s)
        begin_s, cpu_s = time.monotonic(), time.process_time()
        time.sleep(traffic.duration_s)
        end_s, cpu_s = time.monotonic(), time.process_time() - cpu_s
    return Recording(calls=loop.calls, begin_s=begin_s, end_s=end_s, cpu_s=cpu_s)


async def _send_on_time(traffic: Traffic) -> Recording:
    items = load_items(traffic.items)
    arrive = ARRIVALS[traffic.arrivals]
    spent: list[tuple[float, float]] = []

    def offsets_s() -> Iterator[float]:
        for offset_s in arrive(traffic.calls_per_s, traffic.warmup_s + traffic.duration_s):
            if not spent and offset_s >= traffic.warmup_s:
                spent.append((begin_s + traffic.warmup_s, time.process_time()))
            yield offset_s
        if not spent:
            raise UserError(f"no call is due after the warm-up of {traffic.warmup_s:g} s")
        spent.append((time.monotonic(), time.process_time()))

    retries = None if traffic.retries else NO_RETRIES
    async with classifying_async(traffic.url, timeout_s=traffic.timeout_s, retries=retries) as send:
        begin_s = time.monotonic()
        calls = await send_on_time(send, items, offsets_s())
    (measured_from_s, cpu_before_s), (end_s, cpu_s) = spent
    return Recording(calls=calls, begin_s=measured_from_s, end_s=end_s, cpu_s=cpu_s - cpu_before_s)


def save_items(items: Sequence[Item], path: Path) -> None:
    """Keep (image file, text) pairs for the process that sends them."""
    with path.open("wb") as file:
        for image, text in items:
            data = text.encode()
            file.write(len(image).to_bytes(4, "little") + len(data).to_bytes(4, "little") + image + data)


def load_items(path: Path) -> list[Item]:
    """What `save_items` wrote."""
    data, items, start = path.read_bytes(), [], 0
    while start < len(data):
        image, text = (int.from_bytes(data[start + at : start + at + 4], "little") for at in (0, 4))
        start += 8
        items.append((data[start : start + image], data[start + image : start + image + text].decode()))
        start += image + text
    return items


def _text(call: Call) -> str | None:
    return None if call.is_answered else str(call.result)


def main() -> None:
    job = json.load(sys.stdin)
    recording = send_from_here(Traffic(**{**job, "items": Path(job["items"])}))
    found = {field.name: getattr(recording, field.name) for field in dataclasses.fields(recording)}
    found["calls"] = [
        (call.item, call.start_s, call.end_s, call.outcome, call.is_answered, _text(call))
        for call in recording.calls
    ]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
