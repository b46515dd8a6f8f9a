"""The show itself: activate, roll back, three activations that must fail, activate again, under load."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.release_show.spoiling import REFUSALS, Spoil, spoilt
from bench.release_show.versions import expect, find_strays, version_of
from diptych_serving.errors import UserError
from diptych_serving.release.activation import activate
from diptych_serving.release.control import Control
from diptych_serving.repository.layout import CONFIG_FILE, previous_version
from diptych_serving.server import Server, ServerConfig
from diptych_serving.traffic import Call, ClosedLoop, Item, classifying

FIRST, SECOND, SPOILT = 1, 2, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """One command, on the clock of the answers.

    is_as_promised  it did what it should; of one that must fail: for the right reason, and undid everything
    """

    name: str
    start_s: float
    end_s: float
    outcome: str
    is_as_promised: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """What happened. `strays` are answers that are not those of the version which they name."""

    start_s: float
    end_s: float
    events: list[Event]
    answers: list[Call]
    failures: list[Call]
    strays: list[Call]

    @property
    def is_as_promised(self) -> bool:
        """Nothing was lost or mixed, both versions have answered, and every command did what it should."""
        served = {version_of(call) for call in self.answers}
        return (
            not self.failures
            and not self.strays
            and served == {FIRST, SECOND}
            and all(event.is_as_promised for event in self.events)
        )


def run_show(
    repository: Path,
    items: Sequence[Item],
    *,
    num_clients: int = 8,
    at_least_s: float = 0.0,
    think_s: float = 0.0,
    pause_s: float = 0.0,
    tolerance: float = 1e-4,
) -> Show:
    """Serve a repository that holds three versions, of which the first serves, and release under load.

    at_least_s  the load goes on for so long, even where all is done before
    pause_s     between the commands, so that the answers in between can be seen
    tolerance   of a probability; versions must differ by more
    """
    expected = expect(repository, (FIRST, SECOND), items)
    with (
        Server(repository, ServerConfig.on_free_ports()) as server,
        Control(server.grpc_url) as control,
    ):
        server.wait_until_ready()
        start_s = time.monotonic()
        clients = [functools.partial(classifying, server.grpc_url)] * num_clients
        with ClosedLoop(clients, items, pause_s=think_s) as traffic:
            time.sleep(pause_s)
            events = []
            for event in _release(repository, control):
                events.append(event)
                time.sleep(pause_s)
            time.sleep(max(0.0, start_s + at_least_s - time.monotonic()))
        end_s = time.monotonic()
    answers = [call for call in traffic.calls if call.is_answered]
    return Show(
        start_s=start_s,
        end_s=end_s,
        events=events,
        answers=answers,
        failures=[call for call in traffic.calls if not call.is_answered],
        strays=find_strays(answers, expected, tolerance),
    )


def _release(repository: Path, control: Control) -> Iterator[Event]:
    yield _succeed("activate 2", SECOND, control, lambda: activate(repository, SECOND, control))
    yield _succeed(
        "rollback", FIRST, control, lambda: activate(repository, previous_version(repository), control)
    )
    for spoil, reason in REFUSALS.items():
        with spoilt(repository, SPOILT, spoil):
            yield _fail(spoil, reason, repository, control)
    yield _succeed("activate 2", SECOND, control, lambda: activate(repository, SECOND, control))


def _succeed(name: str, version: int, control: Control, command: Callable[[], object]) -> Event:
    start_s = time.monotonic()
    command()
    return Event(
        name=name,
        start_s=start_s,
        end_s=time.monotonic(),
        outcome=f"version {version} serves",
        is_as_promised=control.serving_version() == version,
    )


def _fail(spoil: Spoil, reason: str, repository: Path, control: Control) -> Event:
    before, serving = _configs(repository), control.serving_version()
    start_s, outcome = time.monotonic(), "not refused"
    try:
        activate(repository, SPOILT, control)
    except UserError as error:
        outcome = str(error)
    is_undone = _configs(repository) == before and control.serving_version() == serving
    return Event(
        name=f"activate 3, {spoil.__name__.replace('_', ' ')}",
        start_s=start_s,
        end_s=time.monotonic(),
        outcome=f"refused: {outcome}" if outcome != "not refused" else outcome,
        is_as_promised=bool(re.search(reason, outcome)) and is_undone,
    )


def _configs(repository: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text("utf-8") for path in repository.glob(f"*/{CONFIG_FILE}")}
