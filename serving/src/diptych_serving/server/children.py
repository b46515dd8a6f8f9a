"""Starts processes that end with this one, even if it is killed.

`signals.end_in_order` turns the signals that a process can handle into an exception. SIGKILL
cannot be handled: `start` asks the kernel to send the child SIGTERM when this process dies.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from diptych_serving.server import launch

# Time for a child to end its own children.
EXIT_TIMEOUT_S = 30.0


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """subprocess.Popen for a process that ends with the thread that started it.

    Call it from a thread that lives as long as the child should: the kernel watches threads, not processes.
    """
    program = shutil.which(command[0]) or command[0]
    launcher = [sys.executable, "-I", launch.__file__, str(os.getpid())]
    return subprocess.Popen([*launcher, program, *command[1:]], **options)


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that gets SIGTERM at the end of the `with`, and SIGKILL if it does not end."""
    process = start(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
