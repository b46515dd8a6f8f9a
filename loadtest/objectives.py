"""The service-level objectives of slo.toml, and their breaches."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Protocol

import msgspec

from diptych_serving.toml_file import load_toml


class Measured(Protocol):
    """The figures that objectives limit."""

    @property
    def num_offered(self) -> int: ...
    @property
    def error_share(self) -> float: ...
    @property
    def p99_ms(self) -> float: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objectives:
    """p99_ms           latency that 99 of 100 calls do not exceed; in open loop from the planned start
    error_share      share of the calls that end wrongly
    throughput_per_s calls that the deployment answers each second while it holds the other two
    """

    p99_ms: Annotated[float, msgspec.Meta(gt=0)]
    error_share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    throughput_per_s: Annotated[float, msgspec.Meta(ge=0)]

    def breaches_of_calls(self, measured: Measured) -> list[str]:
        """Breaches of the limits for single calls, as text."""
        if not measured.num_offered:
            return ["no call was made: nothing is shown"]
        breaches = []
        if measured.error_share > self.error_share:
            breaches.append(f"error_share: found {measured.error_share:.3%}, allowed {self.error_share:.3%}")
        if math.isnan(measured.p99_ms):
            breaches.append(f"p99_ms: found no call that ended as it should, allowed {self.p99_ms:g}")
        elif measured.p99_ms > self.p99_ms:
            breaches.append(f"p99_ms: found {measured.p99_ms:.3g}, allowed {self.p99_ms:g}")
        return breaches


def load_objectives(path: Path) -> Objectives:
    """Read slo.toml or a file like it. Raises UserError."""
    return load_toml(path, Objectives, missing="Write one like loadtest/slo.toml, and name it with --slo")
