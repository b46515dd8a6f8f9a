"""One run exported in every precision that this machine computes in, for a search to choose from."""

from __future__ import annotations

from pathlib import Path

from diptych.export.export import export
from diptych.export.precision import choose_precision, choose_runtime
from diptych.runs.run import load_run

REQUESTS = ("auto", "fp32", "int8")


def export_precisions(run: Path, directory: Path) -> dict[str, Path]:
    """Repositories by what `--precision` was given. Left out: what comes out as another did."""
    loaded = load_run(run)
    repositories: dict[str, Path] = {}
    seen = set()
    for request in REQUESTS:
        repository = directory / request
        precision = choose_precision(request, "cpu")
        runtime = choose_runtime("auto", "cpu", precision)
        _, gated = export(loaded, repository, precision, runtime=runtime)
        form = (gated.runtime, str(gated.precision))
        if form not in seen:
            seen.add(form)
            repositories[request] = repository
    return repositories
