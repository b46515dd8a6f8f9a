"""What a service installs: the client's wheel, built as a user's pip builds it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

CLIENT = Path(__file__).parents[2] / "client"
MAX_BYTES = 150_000


def test_the_wheel_is_small_typed_and_brings_no_torch(tmp_path: Path) -> None:
    # Of a copy, because setuptools builds inside the source's own folder.
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    source = shutil.copytree(CLIENT, tmp_path / "client", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < MAX_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read(next(n for n in names if n.endswith("METADATA"))).decode())
    assert "diptych_client/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"diptych_client"}
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">")[0].split("[")[0] for line in needed) == [
        "grpcio",
        "h11",
        "numpy",
        "pillow",
        "protobuf",
        "tritonclient",
    ]
    assert metadata["Requires-Python"] == ">=3.10"
