"""The documents and their shell blocks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documents() -> list[str]:
    """Paths of all Markdown files, relative to the checkout."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


def shell_blocks(document: Path) -> list[str]:
    return BLOCK.findall(document.read_text("utf-8"))
