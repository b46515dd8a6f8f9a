"""`release activate` in a process of its own, which dies or is asked to end at one of its steps.

A step is a change of a file (a rename, a removal) or a question to a server. The server here keeps what it
has loaded in memory and reads the configs that are really there, as tritonserver does.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych_serving.errors import UserError
from diptych_serving.release.activation import activate
from diptych_serving.release.undo import Unreachable
from diptych_serving.repository.layout import ENSEMBLE, STEPS, loaded_by_step, serving_version
from diptych_serving.server.signals import Stopped, signals_raise_stopped

DONE, REFUSED, STOPPED = 0, 3, 4
ANSWER = np.array([0.25, 0.75], dtype=np.float32)
CHANGES = ("os.rename", "os.remove")


class Steps:
    """Counts them, and acts at one."""

    def __init__(self, repository: Path, at: int, action: Callable[[], object]) -> None:
        self.count = 0
        self._repository, self._at, self._action = str(repository), at, action
        sys.addaudithook(self._on_event)

    def pass_one(self) -> None:
        self.count += 1
        if self.count == self._at:
            self._action()

    def _on_event(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES and str(arguments[0]).startswith(self._repository):
            self.pass_one()


class FakeServer:
    """Starts on what the repository says."""

    url = "grpc://127.0.0.1:1"

    def __init__(self, repository: Path) -> None:
        self.on_call: Callable[[], object] = lambda: None
        self.repository = repository
        self.is_dead = False
        self.steps = loaded_by_step(repository)
        self.ensemble = serving_version(repository)

    def load(self, model: str) -> None:
        self._call()
        if model != ENSEMBLE:
            versions = loaded_by_step(self.repository)[model]
            # As tritonserver: a version that the ensemble names must not go.
            assert self.ensemble in versions, f"{model} lost version {self.ensemble}, which serves"
            self.steps[model] = versions
            return
        version = serving_version(self.repository)
        if lacking := [step for step, versions in self.steps.items() if version not in versions]:
            raise UserError(f"{self.url}: load_model: {lacking[0]} has no version {version}")
        self.ensemble = version

    def serving_version(self) -> int | None:
        self._call()
        return self.ensemble

    def loaded(self) -> set[tuple[str, int]]:
        self._call()
        steps = {(step, version) for step in STEPS for version in self.steps[step]}
        return {*steps, (ENSEMBLE, self.ensemble)}

    def ask(self, version: int, image: bytes, text: bytes) -> NDArray[np.float32]:
        self._call()
        return ANSWER

    def _call(self) -> None:
        self.on_call()
        if self.is_dead:
            raise Unreachable(f"{self.url}: failed to connect to all addresses")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crash:
    """What happens, at which step: a signal to the command's process, or the server's death (None).

    then_at      the step at which the command is sent one more
    then_signum  which one
    """

    at: int
    signum: int | None
    then_at: int | None = None
    then_signum: int = signal.SIGKILL


def run(repository: Path, version: int, crash: Crash) -> None:
    """Ends this process: with DONE, REFUSED, STOPPED or by the signal."""
    server = FakeServer(repository)

    def act() -> None:
        if crash.signum is None:
            server.is_dead = True
        else:
            os.kill(os.getpid(), crash.signum)

    first = Steps(repository, crash.at, act)
    then = Steps(repository, crash.then_at or 0, lambda: os.kill(os.getpid(), crash.then_signum))

    def on_call() -> None:
        first.pass_one()
        then.pass_one()

    server.on_call = on_call
    try:
        with signals_raise_stopped(second_kills=True):  # as the command line does
            activate(repository, version, server)
    except Stopped:
        os._exit(STOPPED)
    except UserError:
        os._exit(REFUSED)
    os._exit(DONE)
