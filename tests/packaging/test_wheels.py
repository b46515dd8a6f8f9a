"""The three wheels, built as a release builds them, installed into clean environments and used there.

Nothing is downloaded: an environment sees the packages of the one that runs the tests, or some of them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = {"client": "diptych_client", "serving": "diptych_serving", "training": "diptych"}
MAX_CLIENT_BYTES = 150_000
PACKAGES = Path(sysconfig.get_path("purelib"))
SERVING_NEEDS = ("numpy", "numpy.libs", "PIL", "pillow.libs", "tokenizers")


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By project. Each comes from its source distribution, in which links are files."""
    root = tmp_path_factory.mktemp("checkout")
    not_source = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    for name in ("model_repository", *PROJECTS):
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=not_source)
    for name in ("VERSION", "LICENSE"):
        shutil.copy(ROOT / name, root)
    built = {}
    for project, package in PROJECTS.items():
        to = tmp_path_factory.mktemp(project)
        program = f"from setuptools import build_meta; build_meta.build_sdist({str(to)!r})"
        made = run(sys.executable, "-c", program, cwd=root / project)
        assert made.returncode == 0, made.stderr
        (source,) = to.glob("*.tar.gz")
        options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", to]
        made = run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=to)
        assert made.returncode == 0, made.stderr
        (built[project],) = to.glob(f"{package}-*.whl")
    return built


def install(directory: Path, *wheels: Path) -> Path:
    """A clean environment with these wheels and nothing else. Returns its bin/."""
    venv.create(directory, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", directory, "install"]
    done = run(*pip, "--quiet", "--no-index", "--no-deps", *wheels, cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory / "bin"


def site_packages(directory: Path) -> Path:
    (found,) = directory.glob("lib/python*/site-packages")
    return found


def see_all_packages(directory: Path) -> None:
    """Those of this environment come last, so the wheels win. Its editable installs are not seen."""
    (site_packages(directory) / "others.pth").write_text(f"{PACKAGES}\n")


@pytest.mark.parametrize("project", PROJECTS)
def test_a_wheel_holds_one_package_its_license_and_the_one_version(
    wheels: dict[str, Path], project: str
) -> None:
    with zipfile.ZipFile(wheels[project]) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read(next(n for n in names if n.endswith("/METADATA"))).decode())
        (license_file,) = [name for name in names if name.endswith("licenses/LICENSE")]
        assert archive.read(license_file) == (ROOT / "LICENSE").read_bytes()
    assert {name.split("/")[0].split("-")[0] for name in names} == {PROJECTS[project]}
    assert metadata["Version"] == (ROOT / "VERSION").read_text().strip()
    assert metadata["Author"] == "The Diptych developers"


def test_the_client_is_small_and_calls_without_torch(wheels: dict[str, Path], tmp_path: Path) -> None:
    assert wheels["client"].stat().st_size < MAX_CLIENT_BYTES
    programs = install(tmp_path / "env", wheels["client"])
    see_all_packages(tmp_path / "env")
    program = f"""
import sys, diptych_client
from diptych_client.testing import FakeServer
fake = FakeServer(["food", "tools"])
fake.answer = {{"food": 0.9}}
with fake.client() as client:
    assert client.classify(text="apple").label == "food"
assert diptych_client.__file__.startswith({str(tmp_path)!r}), diptych_client.__file__
assert "torch" not in sys.modules
"""
    done = run(programs / "python", "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version = run(programs / "diptych-client", "--version", cwd=tmp_path).stdout
    assert version == f"diptych-client {(ROOT / 'VERSION').read_text()}"


def test_the_servers_core_needs_numpy_pillow_and_tokenizers_alone(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    programs = install(tmp_path / "env", wheels["serving"])
    for name in SERVING_NEEDS:
        if (PACKAGES / name).exists():
            (site_packages(tmp_path / "env") / name).symlink_to(PACKAGES / name)
    modules = "container, healthcheck, fetch, preprocessing, image_files, metering, server, repository"
    done = run(programs / "python", "-c", f"from diptych_serving import {modules}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(programs / "python", "-m", "diptych_serving.container", "--help", cwd=tmp_path)
    assert "usage:" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def all_three(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment with the three wheels."""
    directory = tmp_path_factory.mktemp("all") / "env"
    programs = install(directory, *wheels.values())
    see_all_packages(directory)
    return programs


def test_a_shipped_config_is_found_without_a_checkout(all_three: Path, tmp_path: Path) -> None:
    program = """
from pathlib import Path
import diptych
from diptych.config.loader import load_config
print(diptych.__file__, load_config(Path("quickstart")).data.train_csv)
"""
    done = run(all_three / "python", "-c", program, cwd=tmp_path)
    file, table = done.stdout.split()
    assert file.startswith(str(all_three.parent))
    assert table.endswith("data/openclipart/train.csv")


def test_diptych_trains_and_exports_without_a_checkout(all_three: Path, tmp_path: Path) -> None:
    from tests.helpers.tiny_model import write_tiny_config

    assert "Usage: diptych" in run(all_three / "diptych", "--help", cwd=tmp_path).stdout
    write_tiny_config(tmp_path / "tiny")
    config = ["tiny/tiny.toml", "--set", "train.epochs=1"]
    done = run(all_three / "diptych", "train", *config, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(all_three / "diptych", "export", "run", "--to", "served", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "served/text_encoder/1/model.pt").is_file()
