"""Finds the shared library of the running Python, which the wheel's stub embeds.

Debian's and Ubuntu's python3 does not contain it; there it is a separate package, downloaded if missing.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from diptych_serving.errors import UserError

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
FILE = f"libpython{VERSION}.so.1.0"
PACKAGE = f"libpython{VERSION}"


def find_libpython() -> Path:
    """The interpreter's own library, else the system's, else the one in Debian's package."""
    candidates = [
        Path(sys.base_prefix) / "lib" / FILE,
        Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib") / FILE,
        Path("/usr/lib", sysconfig.get_config_var("MULTIARCH") or "", FILE),
    ]
    return next((path for path in candidates if path.is_file()), None) or _downloaded()


def _downloaded() -> Path:
    # Not in the container images.
    from diptych_serving.cache import cache_directory
    from diptych_serving.debian import PackagesUnavailable, download_packages, unpacked

    target = cache_directory("libpython") / FILE
    if target.is_file():
        return target
    try:
        debs = download_packages([PACKAGE], target.parent)
        with unpacked(debs) as root:
            library = next(path for path in root.rglob(FILE) if not path.is_symlink())
            library.replace(target)
    except (PackagesUnavailable, StopIteration, OSError) as error:
        raise UserError(
            f"tritonserver's Python backend needs {FILE}, which this Python does not have and apt-get could "
            f"not download ({error}). Install it: apt-get install {PACKAGE}"
        ) from None
    return target
