"""Writes the benchmark's results as a table, JSON and charts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.speed.charts import describe_noise, plot_outcomes, plot_soaks
from bench.speed.measure import Outcome, Plan
from diptych.export.manifest import git_commit
from diptych_serving.hardware import num_cores

JSON_FILE, PLOT_FILE, SOAK_FILE = "bench.json", "bench.png", "soak.png"
PACKAGES = (
    *("torch", "openvino", "nvidia-pytriton", "tritonclient", "litserve", "fastapi", "uvicorn"),
    *("numpy", "pillow"),
)
COLUMNS = {
    "items_per_s": ("items/s", ".1f"),
    "lowest_items_per_s": ("lowest", ".1f"),
    "highest_items_per_s": ("highest", ".1f"),
    "p50_ms": ("p50 ms", ".0f"),
    "p95_ms": ("p95 ms", ".0f"),
    "p99_ms": ("p99 ms", ".0f"),
    "server_cpu_ms": ("CPU-ms/item, server", ".1f"),
    "client_cpu_ms": ("client", ".1f"),
    "memory_mib": ("MiB", ".0f"),
}


def print_results(outcomes: Mapping[str, Outcome]) -> None:
    """One table a pair, and under it the ratios."""
    console = Console(width=max(Console().width, 120))
    for name, outcome in outcomes.items():
        table = Table(
            "system",
            "load",
            title=f"{name}, {outcome.precision}{describe_noise(outcome)}",
            title_justify="left",
        )
        for column, _ in COLUMNS.values():
            table.add_column(column, justify="right")
        for measurement in outcome.measurements:
            cells = [format(getattr(measurement, key), form) for key, (_, form) in COLUMNS.items()]
            table.add_row(measurement.system, measurement.load, *cells)
        console.print(table)
        for key, value in outcome.ratios().items():
            console.print(f"  {key:<36} {value:.2f}", highlight=False)
        console.print(
            f"  soak: {outcome.soak.num_items[-1]} items, straight line R² {outcome.soak.r_squared:.4f}, "
            f"memory {outcome.soak.growth_mib:+.1f} MiB after warm-up\n",
            highlight=False,
        )


def save_results(outcomes: Mapping[str, Outcome], plan: Plan, directory: Path) -> None:
    """bench.json, bench.png and soak.png in an existing or a new directory."""
    directory.mkdir(parents=True, exist_ok=True)
    found = {
        "measured": {
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "git_commit": git_commit(),
            "plan": dataclasses.asdict(plan),
            "hardware": _hardware(),
            "versions": {"python": platform.python_version(), **_versions()},
            "article_threads": num_cores(),
        },
        **{
            name: {
                **outcome.ratios(),
                "is_quiet": outcome.is_quiet,
                "others_load": outcome.others_load,
                "precision": outcome.precision,
                "settings": dataclasses.asdict(outcome.settings),
                "measurements": [dataclasses.asdict(row) for row in outcome.measurements],
                "steady_at_70pct": outcome.steady,
                "soak": dataclasses.asdict(outcome.soak),
            }
            for name, outcome in outcomes.items()
        },
    }
    (directory / JSON_FILE).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    plot_outcomes(outcomes, directory / PLOT_FILE)
    plot_soaks(outcomes, directory / SOAK_FILE)


def _versions() -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _hardware() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "num_cores": num_cores(), "memory_gib": round(gib, 1)}
