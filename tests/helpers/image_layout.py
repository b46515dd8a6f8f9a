"""What a Dockerfile of ours copies, without an engine."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SERVING = DOCKER / "Dockerfile"
SERVING_PACKAGES = ["cffi", "cryptography", "numpy", "pillow", "tokenizers"]


def copied(dockerfile: Path) -> list[tuple[list[str], str]]:
    """(sources, target) of each COPY from the build context."""
    lines = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+)$", dockerfile.read_text(), re.MULTILINE)
    return [(words[:-1], words[-1]) for words in map(str.split, lines)]


def lay_out(dockerfile: Path, root: Path) -> None:
    """Copy as the Dockerfile does, into a directory that stands for the image's root."""
    for sources, target in copied(dockerfile):
        for source in sources:
            to = root / target.lstrip("/")
            if (ROOT / source).is_file() and target.endswith("/"):
                to /= Path(source).name
            to.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-rT", ROOT / source, to], check=True)
    if "--target /opt/diptych /src/serving" in dockerfile.read_text():
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        target = ["--target", root / "opt/diptych", root / "src/serving"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *target], check=True)


def link_signature_packages(root: Path) -> None:
    """What the serving image has beside the standard library to check a signature with: nothing else of this
    environment."""
    for module in ("cryptography", "_cffi_backend"):
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        found = Path(spec.origin)
        found = found.parent if found.name == "__init__.py" else found
        (root / found.name).symlink_to(found)
