"""The temporary directory that one tritonserver runs from: its backends, its libraries, its log."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diptych_serving import openvino_runtime
from diptych_serving.cache import cache_directory
from diptych_serving.server import leftovers
from diptych_serving.server.installation import STUB, Installation
from diptych_serving.server.libpython import find_libpython

if TYPE_CHECKING:
    from diptych_serving.repository.settings import Settings

# Libraries start a thread for each core in every process. Our parallelism is processes: one thread each, and
# for PyTorch the number in the configs.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
OUR_BACKENDS = Path(__file__).parents[1] / "backends"


class Workspace:
    """Made before the server starts; removed by `leftovers.sweep` with everything of its prefix."""

    def __init__(
        self, prefix: str, installation: Installation, repository: Path, settings: Settings | None = None
    ) -> None:
        self.root = leftovers.temporary_directory() / f"{prefix}workspace"
        self.root.mkdir(mode=0o700)
        self.log = self.root / "tritonserver.log"
        self.backends = self._assemble_backends(installation)
        self.repository = self._shell_safe(repository.resolve(), settings)
        self.environment = self._environment(installation)

    def _assemble_backends(self, installation: Installation) -> Path:
        """The two backends that our models need: `python` with the right stub, `pytorch` native or ours."""
        backends = self.root / "backends"
        # A copy: Triton refuses a library that is a link to outside its backend's directory.
        shutil.copytree(installation.backends / "python", backends / "python")
        shutil.copy2(installation.stub, backends / "python" / STUB)
        is_native = installation.has_native_pytorch
        (backends / "pytorch").symlink_to((installation.backends if is_native else OUR_BACKENDS) / "pytorch")
        return backends

    def _shell_safe(self, repository: Path, settings: Settings | None) -> Path:
        """Triton starts stubs by an unquoted shell command, so the path must be plain (docs/triton.md, 3)."""
        if settings is not None:
            from diptych_serving.repository import tuned_copy  # not in the container images

            copy = self.root / tuned_copy.DIRECTORY
            tuned_copy.make_copy(settings, repository, copy)
            return copy
        if shlex.quote(str(repository)) == str(repository):
            return repository
        link = self.root / "model_repository"
        link.symlink_to(repository)
        return link

    def _environment(self, installation: Installation) -> dict[str, str]:
        """Environment for the wheel's server: its libraries, libpython, and this Python with its packages.

        The embedded interpreter ignores PYTHONPATH and PYTHONHOME. It uses the virtual environment of the
        `python3` in PATH.
        """
        environment = {**os.environ, **ONE_THREAD}
        if not installation.has_native_pytorch:
            with contextlib.suppress(RuntimeError):  # an account without a home directory keeps nothing
                environment[openvino_runtime.CACHE_ENV] = str(cache_directory("openvino"))
        if installation.libraries is None:
            return environment
        libraries = self.root / "lib"
        libraries.mkdir()
        libpython = find_libpython()
        (libraries / libpython.name).symlink_to(libpython)
        environment["LD_LIBRARY_PATH"] = _prepend(
            [libraries, installation.libraries], environment.get("LD_LIBRARY_PATH")
        )
        environment["PATH"] = _prepend([Path(sys.executable).parent], environment.get("PATH"))
        return environment


def _prepend(directories: list[Path], paths: str | None) -> str:
    return os.pathsep.join([*map(str, directories), *([paths] if paths else [])])
