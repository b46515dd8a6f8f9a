"""Runs and judges it: `python -m loadtest.soak_with_faults --minutes 10`. Exit status 1: a promise broke.

The first part injects faults that end the server or one of its processes; the second part those that one and
the same server has to survive, so that a leak would show.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from diptych.errors import UserError
from loadtest.soak_with_faults.callers import Callers, known_items
from loadtest.soak_with_faults.faults import Faults
from loadtest.soak_with_faults.gauges import Gauges, Growth, growths
from loadtest.soak_with_faults.ledger import KINDS, UNTYPED, WRONG, Ledger
from loadtest.soak_with_faults.picture import plot_soak
from loadtest.soak_with_faults.served import Served

KILLING_SHARE = 0.5
# Between the recovery from one fault and the next.
REST_S = 8.0
# For caches and connections to be as they will be, before growth is judged.
SETTLE_S = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.soak_with_faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--repository", type=Path, default=Path("build/model_repository"))
    parser.add_argument("--out", type=Path, default=Path("loadtest/results/soak_with_faults"))
    options = parser.parse_args()
    try:
        broken = soak(options.repository, options.minutes * 60, options.out)
    except UserError as error:
        sys.exit(f"error: {error}")
    for line in broken:
        sys.stdout.write(f"BROKEN: {line}\n")
    sys.stdout.write(f"{options.out}.json and {options.out}.png hold the details.\n")
    return 1 if broken else 0


def soak(repository: Path, duration_s: float, out: Path) -> list[str]:
    """Returns the promises that were broken."""
    items = known_items(repository)
    with Served(repository) as served:
        ledger = Ledger()
        faults = Faults(served, items, ledger)
        with Callers(served.urls, items, ledger), Gauges(served, ledger.began_s) as gauges:
            injected = _inject(faults.killing, served, ledger, duration_s * KILLING_SHARE, is_killing=True)
            began_steady_s = ledger.elapsed_s()
            injected += _inject(faults.gentle, served, ledger, duration_s, is_killing=False)
        status, left = served.end()
        said = served.said()

    grown = growths(gauges.samples, began_steady_s + min(SETTLE_S, duration_s / 10))
    broken = [f"{ledger.total(kind)} x {kind}" for kind in (WRONG, UNTYPED) if ledger.total(kind)]
    if ledger.num_unaccounted:
        broken.append(f"{ledger.num_unaccounted} calls never ended")
    if status != 0 or left:
        broken.append(f"the end: status {status}, left behind: {left}")
    broken += [
        f"{growth.gauge} grew from {growth.before:.1f} to {growth.after:.1f}, allowed {growth.allowed:.1f}"
        for growth in grown
        if growth.is_leak
    ]
    _report(ledger, injected, grown)
    out.parent.mkdir(parents=True, exist_ok=True)
    summary = {
        "duration_s": ledger.elapsed_s(),
        "begun": ledger.num_begun,
        "ended": [[kind, error, count] for (kind, error), count in sorted(ledger.counts.items())],
        "faults": [dataclasses.asdict(fault) for fault in injected],
        "growth": [dataclasses.asdict(growth) for growth in grown],
        "broken": broken,
        "oddities": ledger.oddities[:20],
        "serve_said": said.splitlines(),
        "samples": [dataclasses.asdict(sample) for sample in gauges.samples],
    }
    out.with_suffix(".json").write_text(json.dumps(summary, indent=1), "utf-8")
    plot_soak(
        gauges.samples,
        ledger.events,
        [(fault.at_s, fault.name) for fault in injected],
        began_steady_s,
        out.with_suffix(".png"),
    )
    return broken


@dataclasses.dataclass(frozen=True)
class Injected:
    """recovery_s  until the ensemble answered again, from a new server where the fault ended the old one"""

    name: str
    at_s: float
    recovery_s: float


def _inject(
    kinds: Sequence[tuple[str, Callable[[], None]]],
    served: Served,
    ledger: Ledger,
    until_s: float,
    *,
    is_killing: bool,
) -> list[Injected]:
    """Each kind once, and on in turn until the time is over."""
    injected: list[Injected] = []
    for name, fault in itertools.cycle(kinds):
        if len(injected) >= len(kinds) and ledger.elapsed_s() > until_s:
            return injected
        time.sleep(REST_S)
        at_s, pid = ledger.elapsed_s(), served.triton_pid()
        fault()
        if is_killing:
            served.wait_for_another(pid)
        served.wait_until_answering()
        if not is_killing and served.triton_pid() != pid:
            raise UserError(f"{name}: the server did not survive it\n{served.said()}")
        injected.append(Injected(name, round(at_s, 1), round(ledger.elapsed_s() - at_s, 1)))
        sys.stdout.write(f"{at_s:6.0f} s  {name}; all well after {injected[-1].recovery_s} s\n")
        sys.stdout.flush()
    raise AssertionError


def _report(ledger: Ledger, injected: Sequence[Injected], grown: Sequence[Growth]) -> None:
    lines = [f"{ledger.num_begun} calls in {ledger.elapsed_s():.0f} s, {len(injected)} faults"]
    for kind in KINDS:
        errors = ", ".join(
            f"{count} {error}"
            for (each, error), count in sorted(ledger.counts.items())
            if each == kind and error
        )
        lines.append(f"  {kind:<26}{ledger.total(kind):>8}" + (f"  ({errors})" if errors else ""))
    lines.append(f"  {'never ended':<26}{ledger.num_unaccounted:>8}")
    lines += [f"  {growth.gauge:<26}{growth.before:>8.1f} -> {growth.after:.1f}" for growth in grown]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
