"""Builds a directory once for all test processes of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The directory that `build` made. The first process that asks builds it; the others wait.

    build  receives the path, which does not exist yet
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    directory, is_complete = root / name, root / f"{name}.complete"
    with FileLock(root / f"{name}.lock"):
        if not is_complete.exists():
            shutil.rmtree(directory, ignore_errors=True)
            build(directory)
            is_complete.touch()
    return directory
