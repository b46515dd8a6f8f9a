"""Where results are kept that can be computed again."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_ENV = "DIPTYCH_CACHE"


def cache_directory(kind: str) -> Path:
    """A folder for one kind of result, under DIPTYCH_CACHE or ~/.cache/diptych. It may not exist yet."""
    return Path(os.environ.get(CACHE_ENV) or Path.home() / ".cache" / "diptych") / kind
