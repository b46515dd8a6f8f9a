"""Finds the processes and files of each server, and removes those whose owner has died.

A killed tritonserver leaves stubs and regions in /dev/shm (docs/triton.md, 6). Everything of one server has
the same prefix: region names, command lines of the server and its stubs, the workspace in the temporary
directory. The prefix names the process that started the server, so that the next start can see in /proc
whether it lives. Containers may share /dev/shm (a pod's volume outlives its containers) but not /proc, so
the owner also holds a lock, which ends with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from diptych_serving.server.installation import STUB

REGION_OPTION = "shm-region-prefix-name"
SHARED_MEMORY = Path("/dev/shm")
LOCK = "lock"
# PID namespace, process id, its start time: no two processes since boot share these.
OWNER = re.compile(r"diptych-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)-")
REAP_TIMEOUT_S = 5.0

_numbers = itertools.count()


def new_prefix() -> str:
    """A prefix for another server of this process."""
    return f"{owner_prefix(os.getpid())}{next(_numbers)}-"


def owner_prefix(pid: int) -> str:
    """The common start of the prefixes of one process."""
    return f"diptych-{_namespace()}-{pid}-{_start_time(pid)}-"


def claim(prefix: str) -> IO[str]:
    """Show other containers that the owner of a prefix is alive, while the returned file is open."""
    lock = (SHARED_MEMORY / f"{prefix}{LOCK}").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def temporary_directory() -> Path:
    """The system's; /tmp if its name would break Triton's shell commands for stubs (docs/triton.md, 3)."""
    directory = Path(tempfile.gettempdir())
    return directory if shlex.quote(str(directory)) == str(directory) else Path("/tmp")


def sweep_dead() -> None:
    """End and remove what this user's servers left if their owner is dead. Other users' are left alone."""
    ours = [path for path in files_of("diptych-") if _is_ours(path)]
    for owner in {match[0] for path in ours if (match := OWNER.match(path.name))}:
        if not _may_be_alive(owner):
            sweep(owner)


def sweep(prefix: str) -> None:
    """End every process of the server with this prefix, then remove every file of it."""
    processes = list(processes_of(prefix))
    for pid in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + REAP_TIMEOUT_S
    while any(_is_running(pid) for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    for path in files_of(prefix):
        _remove(path)


def processes_of(prefix: str) -> Iterator[int]:
    """The ids of the tritonserver and the stubs with this prefix."""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (directory / "cmdline").read_bytes().decode("utf-8", "replace")
            if f"{REGION_OPTION}={prefix}" in command or (STUB in command and f"\0{prefix}" in command):
                yield int(directory.name)


def reap_orphans(except_pid: int) -> None:
    """Reap dead children that process 1 of a container inherits.

    except_pid  our own child, whose status its owner needs
    """
    if os.getpid() != 1:
        return
    for child in children_of(os.getpid()):
        if child.is_zombie and child.pid != except_pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)


class Child(NamedTuple):
    """A process of a tritonserver; `model` and `version` are None for a zombie and for other processes."""

    pid: int
    is_zombie: bool
    model: str | None
    version: str | None


def children_of(parent_pid: int) -> list[Child]:
    """The children of a tritonserver: its stubs, including dead ones, which it does not reap."""
    children = []
    for directory in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(directory.name))
        if len(fields) > 1 and int(fields[1]) == parent_pid:
            children.append(Child(int(directory.name), fields[0] == "Z", *_model_of(directory)))
    return children


def _model_of(process: Path) -> tuple[str | None, str | None]:
    """A stub's second argument is REPOSITORY/MODEL/VERSION/FILE; a zombie has no arguments."""
    try:
        arguments = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return None, None
    if STUB not in arguments[0] or len(arguments) < 2:
        return None, None
    version = Path(arguments[1]).parent
    return version.parent.name, version.name


def files_of(prefix: str) -> list[Path]:
    """Shared memory and workspaces with this prefix."""
    directories = (SHARED_MEMORY, temporary_directory())
    return [path for directory in directories for path in directory.glob(f"{prefix}*")]


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except OSError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _may_be_alive(owner: str) -> bool:
    match = OWNER.match(owner)
    assert match
    if match["namespace"] != _namespace():
        locks = list(SHARED_MEMORY.glob(f"{owner}*-{LOCK}"))
        return not locks or any(map(_is_held, locks))
    return _start_time(int(match["pid"])) == match["start"]


def _is_held(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or another user's
        return True
    return False


def _namespace() -> str:
    return re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))


def _is_running(pid: int) -> bool:
    """False for zombies too: they hold nothing."""
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def _start_time(pid: int) -> str:
    """In clock ticks since boot; empty if there is no such process."""
    fields = _stat(pid)
    return fields[19] if fields else ""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, the state, on; the second may hold spaces and parentheses."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
