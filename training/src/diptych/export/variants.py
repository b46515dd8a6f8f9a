"""One run exported in every precision that this machine computes in, for a search to choose from."""

from __future__ import annotations

from pathlib import Path

from diptych.export.export import export
from diptych.export.precision import choose_precision
from diptych.runs.run import load_run

REQUESTS = ("auto", "fp32", "int8")


def export_precisions(run: Path, directory: Path) -> dict[str, Path]:
    """Repositories by what `--precision` was given. Left out: what comes out as another did."""
    loaded = load_run(run)
    repositories: dict[str, Path] = {}
    seen = set()
    for request in REQUESTS:
        repository = directory / request
        _, gated = export(loaded, repository, choose_precision(request, "cpu"))
        if str(gated.precision) not in seen:
            seen.add(str(gated.precision))
            repositories[request] = repository
    return repositories
