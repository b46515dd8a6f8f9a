"""`python -m bench.soak` in short: one fault that ends the server, then those it survives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.soak.soak import soak

FAULTS = ["kill -9 of tritonserver", "full queue", "clients vanish"]


def test_every_call_is_accounted_for_and_no_answer_is_wrong(
    exported_repository: Path, tmp_path: Path
) -> None:
    out, repository = tmp_path / "soak", tmp_path / "model_repository"
    shutil.copytree(exported_repository, repository)  # using it in process leaves bytecode in it
    assert soak(repository, 1.0, out, only=FAULTS, rest_s=0.5) == []
    summary = json.loads(out.with_suffix(".json").read_text())
    assert [fault["name"] for fault in summary["faults"]] == [*FAULTS, *FAULTS[1:]]
    assert sum(count for _, _, count in summary["ended"]) == summary["begun"] > 500
    assert {kind for kind, _, _ in summary["ended"]} == {
        "answered",
        "refused with a reason",
        "failed with a typed error",
    }
    assert out.with_suffix(".png").stat().st_size > 10_000
