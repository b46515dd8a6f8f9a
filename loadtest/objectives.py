"""The service-level objectives of slo.toml, and which of them a run breaches."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from pathlib import Path
from typing import Annotated, Protocol

import msgspec

from diptych_serving.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Measured(Protocol):
    """What the objectives look at."""

    @property
    def num_offered(self) -> int: ...
    @property
    def error_share(self) -> float: ...
    @property
    def p99_ms(self) -> float: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objectives:
    """p99_ms           latency that 99 of 100 calls do not exceed; in open loop from the intended start
    error_share      of the calls, those that end otherwise than they should
    throughput_per_s calls that the deployment answers each second while it holds the other two
    """

    p99_ms: Annotated[float, msgspec.Meta(gt=0)]
    error_share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    throughput_per_s: Annotated[float, msgspec.Meta(ge=0)]

    def breaches_of_calls(self, measured: Measured) -> list[str]:
        """What single calls suffered, in words."""
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
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"--slo {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--slo {path}: not valid TOML: {error}") from None
    known = [field.name for field in dataclasses.fields(Objectives)]
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{path}: unknown key '{key}'.{hint} Known keys: {', '.join(known)}")
    try:
        return msgspec.convert(tree, Objectives)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}") from None
