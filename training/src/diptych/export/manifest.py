"""What a version of the repository is made of, kept beside it."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from diptych.export.gate import Gated
from diptych.export.precision import Precision, Target
from diptych.runs.run import WEIGHTS_FILE, Run, read_metrics
from diptych_serving.repository.layout import IMAGE_ENCODER, TEXT_ENCODER, sha256


def build_manifest(
    run: Run,
    version: int,
    *,
    repository: Path,
    files: Sequence[Path],
    gated: Gated,
    target: Target,
) -> dict[str, Any]:
    """Run, git commit, checksums, signatures, precision and parity figures of one version, and what kind of
    device it was exported for.
    """
    metrics = read_metrics(run.directory)
    return {
        "version": version,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "torch": torch.__version__,
        "run": {
            "name": run.directory.name,
            "weights_sha256": sha256(run.directory / WEIGHTS_FILE),
            "test": metrics.get("test"),
        },
        "labels": run.labels,
        "preprocessing": dataclasses.asdict(run.preprocessor.spec),
        "signatures": {name: str(part.forward.schema) for name, part in gated.files.items()},  # type: ignore[attr-defined]
        "target": target,
        "precision": _by_encoder(gated.file_precision),
        "runtime": {"name": gated.runtime, "precision": _by_encoder(gated.precision)},
        "parity": [dataclasses.asdict(result) for result in gated.parity],
        "judgements": [dataclasses.asdict(judgement) for judgement in gated.judgements],
        "sha256": {str(path.relative_to(repository)): sha256(path) for path in sorted(files)},
    }


def _by_encoder(precision: Precision) -> dict[str, str]:
    return {IMAGE_ENCODER: precision.image, TEXT_ENCODER: precision.text}


def git_commit() -> str | None:
    """The commit of the code that exports, '-dirty' where it was changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
