"""Runs the soak and judges it.

The first part injects faults that end the server or one of its processes, or may; the second part those that
one and the same server has to survive. Growth is judged once it has had each of them: the first storm and the
first full queue make allocators and shared memory grow to what they need, and a leak goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from bench.served import ServedProcess
from bench.soak.callers import Callers, known_items
from bench.soak.chart import plot_soak
from bench.soak.faults import Ends, Fault, Faults
from bench.soak.gauges import Gauges, Growth, growths
from bench.soak.ledger import KINDS, UNTYPED, WRONG, Ledger
from diptych_serving.errors import UserError
from diptych_serving.server.supervisor import Restarts

HARSH_SHARE = 0.5
# Between the recovery from one fault and the next.
REST_S = 8.0
# For caches and connections to be as they will be, before growth is judged.
SETTLE_S = 20.0


def soak(
    repository: Path,
    duration_s: float,
    out: Path,
    *,
    only: Collection[str] | None = None,
    rest_s: float = REST_S,
) -> list[str]:
    """Returns the promises that were broken.

    only  the names of the faults; None: all of them
    """
    items = known_items(repository)
    # The soak injects more faults in a row than a real server would be restarted after.
    with ServedProcess(repository, restarts=Restarts(max_in_a_row=1000)) as served:
        served.wait_until_ready()
        ledger = Ledger()
        faults = Faults(served, items, ledger)
        harsh, gentle = (
            [fault for fault in kinds if only is None or fault.name in only]
            for kinds in (faults.harsh, faults.gentle)
        )
        with Callers(served.urls, items, ledger), Gauges(served, ledger.began_s) as gauges:
            inject = functools.partial(_inject, served, ledger, rest_s)
            injected = inject(harsh, duration_s * HARSH_SHARE)
            injected += inject(gentle, 0.0)
            began_steady_s = ledger.elapsed_s()
            injected += inject(gentle, duration_s)
        status, left = served.end()
        said = served.output()

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
        "ended": [[kind, error, count] for (kind, error), count in sorted(ledger.counts().items())],
        "faults": [dataclasses.asdict(fault) for fault in injected],
        "growth": [dataclasses.asdict(growth) for growth in grown],
        "broken": broken,
        "oddities": ledger.oddities()[:20],
        "serve_said": said.splitlines(),
        "samples": [dataclasses.asdict(sample) for sample in gauges.samples],
    }
    out.with_suffix(".json").write_text(json.dumps(summary, indent=1), "utf-8")
    plot_soak(
        gauges.samples,
        ledger.events(),
        [(fault.at_s, fault.name) for fault in injected],
        began_steady_s,
        out.with_suffix(".png"),
    )
    return broken


@dataclasses.dataclass(frozen=True)
class Injected:
    """recovery_s       until the ensemble answered again, from a new server where the fault ended the old one
    has_ended_server
    """

    name: str
    at_s: float
    recovery_s: float
    has_ended_server: bool


def _inject(
    served: ServedProcess, ledger: Ledger, rest_s: float, kinds: Sequence[Fault], until_s: float
) -> list[Injected]:
    """Each kind once, and on in turn until the time is over."""
    injected: list[Injected] = []
    for fault in itertools.cycle(kinds):
        if len(injected) >= len(kinds) and ledger.elapsed_s() > until_s:
            return injected
        time.sleep(rest_s)
        at_s, pid = ledger.elapsed_s(), served.triton_pid()
        fault.inject()
        if fault.ends is Ends.ALWAYS:
            served.wait_for_another(pid)
        served.wait_until_answering()
        has_ended_server = served.triton_pid() != pid
        if fault.ends is Ends.NEVER and has_ended_server:
            raise UserError(f"{fault.name}: the server did not survive it\n{served.output()}")
        recovery_s = round(ledger.elapsed_s() - at_s, 1)
        injected.append(Injected(fault.name, round(at_s, 1), recovery_s, has_ended_server))
        ended = " (it ended the server)" if has_ended_server and fault.ends is Ends.PERHAPS else ""
        sys.stdout.write(f"{at_s:6.0f} s  {fault.name}{ended}; all well after {recovery_s} s\n")
        sys.stdout.flush()
    return injected  # no kinds


def _report(ledger: Ledger, injected: Sequence[Injected], grown: Sequence[Growth]) -> None:
    lines = [f"{ledger.num_begun} calls in {ledger.elapsed_s():.0f} s, {len(injected)} faults"]
    for kind in KINDS:
        errors = ", ".join(
            f"{count} {error}"
            for (each, error), count in sorted(ledger.counts().items())
            if each == kind and error
        )
        lines.append(f"  {kind:<26}{ledger.total(kind):>8}" + (f"  ({errors})" if errors else ""))
    lines.append(f"  {'never ended':<26}{ledger.num_unaccounted:>8}")
    lines += [f"  {growth.gauge:<26}{growth.before:>8.1f} -> {growth.after:.1f}" for growth in grown]
    sys.stdout.write("\n".join(lines) + "\n")
