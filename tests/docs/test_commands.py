"""Each shell block of the documents is run by a test, or says here why not."""

from __future__ import annotations

import pytest

from tests.helpers.documents import ROOT, documents, shell_blocks

# Each of these tests runs all shell blocks of its document, but those below.
RUN_BY = {
    "README.md": "tests/e2e/test_readme.py",
    "docker/README.md": "tests/e2e/test_docker_commands.py",
    "docker/kubernetes/README.md": "tests/e2e/test_docker_commands.py",
    "docs/wire.md": "tests/e2e/test_wire_document.py",
}
# How a block begins: why no test runs it as it stands.
NOT_RUN = {
    "make demo ": ".ci/run runs both targets; this is one of them",
    "diptych train training/configs/quickstart.toml --folds 5": "hours; test_folds.py trains small folds",
    "grep -v test_csv": "hours; test_folds.py averages small folds",
    "diptych ablate": "hours; test_comparisons.py runs a small ablation",
    "openssl genpkey": "RUN and REPO are the reader's; test_command_line.py signs and requires signatures",
    "T=$(python": "builds Triton's PyTorch backend from sources on the network",
    "python -m loadtest --shape step --users 80": "minutes; test_loadtest.py runs a short one",
    "locust -f loadtest/locustfile.py --host": "a minute; test_loadtest.py runs short ones",
    "locust -f loadtest/locustfile.py --master": "several machines; test_loadtest.py runs two workers",
    "python -m bench.overload": "minutes; they measure",
    "make setup ": ".ci/run sets up, and `make check` runs this test",
    ".venv/bin/python -m pytest tests/docs ": "runs these tests",
    "python -m bench.scale": "minutes; test_scale.py runs its parts",
    "pip install diptych-serving": "installs from a package registry",
}


def begins(block: str) -> str | None:
    return next((beginning for beginning in NOT_RUN if block.startswith(beginning)), None)


@pytest.mark.parametrize("name", documents())
def test_a_shell_block_is_run_or_has_a_reason(name: str) -> None:
    unexplained = [block for block in shell_blocks(ROOT / name) if begins(block) is None]
    assert not unexplained or (ROOT / RUN_BY.get(name, "missing")).is_file(), unexplained


def test_every_reason_is_about_a_block_that_is_there() -> None:
    blocks = [block for name in documents() for block in shell_blocks(ROOT / name)]
    assert set(NOT_RUN) <= {begins(block) for block in blocks}
