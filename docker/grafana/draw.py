"""Draws Grafana's dashboard as a picture, without Grafana: the same JSON, queries and places.

python docker/grafana/draw.py --prometheus http://127.0.0.1:9090 --minutes 15 --out dashboard.png
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

DASHBOARD = Path(__file__).parent / "dashboards/diptych.json"
NUM_POINTS = 240
TIMEOUT_S = 30
# Grafana's units, as far as the dashboard names them.
UNITS = {
    "percentunit": lambda value: f"{100 * value:.4g} %",
    "µs": lambda value: f"{value / 1000:.4g} ms",
    "s": lambda value: f"{value:.3g} s",
    "bytes": lambda value: f"{value / 2**20:.4g} MiB",
    "reqps": lambda value: f"{value:.3g}/s",
    "short": lambda value: f"{value:,.4g}",
}

Series = dict[str, tuple[list[float], list[float]]]


def fill_in(expression: str, *, rate_interval: str, job: str = ".*") -> str:
    """A panel's query as Grafana would send it."""
    return expression.replace("$__rate_interval", rate_interval).replace("$job", job)


def ask(prometheus: str, path: str, **parameters: object) -> Any:
    """One question to Prometheus's HTTP API. Raises urllib's HTTPError where it refuses the query."""
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        return json.load(response)["data"]


def our_jobs(prometheus: str) -> str:
    """A pattern of the jobs that hold servers of Diptych: Grafana's `All`."""
    jobs = ask(prometheus, "label/job/values", **{"match[]": "diptych_server_memory_bytes"})
    return "|".join(jobs)


def series_of(prometheus: str, panel: dict[str, Any], rate_interval: str, minutes: float, job: str) -> Series:
    """Name of each line to its (seconds before now, values)."""
    now_s = time.time()
    found: Series = {}
    for target in panel["targets"]:
        query = fill_in(target["expr"], rate_interval=rate_interval, job=job)
        step_s = max(1.0, minutes * 60 / NUM_POINTS)
        window = {"start": now_s - minutes * 60, "end": now_s, "step": step_s}
        for result in ask(prometheus, "query_range", query=query, **window)["result"]:
            labels = result["metric"]
            name = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), target["legendFormat"])  # noqa: B023
            points = [(float(at) - now_s, float(value)) for at, value in result["values"]]
            found[name] = ([at for at, _ in points], [value for _, value in points])
    return found


def draw_panel(axes: Axes, panel: dict[str, Any], series: Series, minutes: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    write = UNITS[defaults["unit"]]
    axes.set_title(panel["title"], fontsize=9, loc="left")
    if not series:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, color="grey")
        axes.axis("off")
        return
    if panel["type"] == "stat":
        last = next(iter(series.values()))[1][-1]
        axes.text(0.5, 0.5, write(last), ha="center", va="center", transform=axes.transAxes, fontsize=20)
        axes.axis("off")
        return
    if defaults["custom"]["stacking"]["mode"] == "normal":
        times = sorted({at for ats, _ in series.values() for at in ats})
        by_time = [dict(zip(*line, strict=True)) for line in series.values()]
        axes.stackplot(times, [[line.get(at, 0.0) for at in times] for line in by_time], labels=list(series))
    else:
        for name, line in series.items():
            axes.plot(*line, label=name, linewidth=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 60:.2g} min"))
    axes.set_xlim(-minutes * 60, 0)
    axes.set_ylim(bottom=defaults.get("min"), top=defaults.get("max"))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, loc="upper left", ncols=2)


def draw(prometheus: str, out: Path, *, rate_interval: str, minutes: float) -> None:
    """The whole dashboard into one PNG."""
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    height = max(place["y"] + place["h"] for place in places)
    job = our_jobs(prometheus)
    figure = plt.figure(figsize=(20, height * 0.42))
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        box = (place["x"] / 24, 1 - (place["y"] + place["h"]) / height, place["w"] / 24, place["h"] / height)
        if panel["type"] == "row":
            figure.text(0.005, box[1] + box[3] / 3, panel["title"], fontsize=11, weight="bold")
            continue
        axes = figure.add_axes((box[0] + 0.035, box[1] + 0.012, box[2] - 0.045, box[3] - 0.03))
        draw_panel(axes, panel, series_of(prometheus, panel, rate_interval, minutes, job), minutes)
    figure.savefig(out, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=textwrap.dedent(__doc__ or ""))
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate-interval", default="1m", help="what Grafana puts for $__rate_interval")
    parser.add_argument("--out", type=Path, default=Path("dashboard.png"))
    options = parser.parse_args()
    draw(options.prometheus, options.out, rate_interval=options.rate_interval, minutes=options.minutes)


if __name__ == "__main__":
    main()
