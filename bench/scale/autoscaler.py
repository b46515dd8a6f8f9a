"""The autoscaling rule of docker/kubernetes on simulated time: Prometheus' window, Kubernetes' arithmetic.

The rule is read from scaled-object.yaml as it is written. Kubernetes' arithmetic is in its documentation:
https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.scale.pod import Pod
from diptych_serving.errors import UserError

# The autoscaler asks this often, and does nothing where the ratio is nearer to 1 than the tolerance.
SYNC_S, TOLERANCE = 15.0, 0.1
# The interval of the PodMonitor, and of the group of rules.
SCRAPE_S, EVALUATE_S = 15.0, 15.0
WINDOW_S = 60.0

QUEUE = "diptych:queue_us_per_request:rate1m"
REQUESTS = "diptych:requests:rate1m"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """How much may change within a period: `value` pods, or `value` percent of those at its start."""

    is_percent: bool
    value: float
    period_s: float

    def change(self, num_pods: int) -> float:
        return num_pods * self.value / 100 if self.is_percent else self.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trigger:
    """series      a recorded one
    is_average  whether the value is divided by the number of pods (AverageValue) or compared as it is (Value)
    """

    series: str
    threshold: float
    is_average: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    min_pods: int
    max_pods: int
    up_window_s: float
    up: Sequence[Policy]
    down_window_s: float
    down: Sequence[Policy]
    triggers: Sequence[Trigger]


def load_rule(path: Path, patch: Path | None = None) -> Rule:
    """Read a ScaledObject and an overlay's JSON patch of it. Raises UserError for a series that it lacks."""
    scaled = yaml.safe_load(path.read_text("utf-8"))
    for operation in yaml.safe_load(patch.read_text("utf-8")) if patch else ():
        _apply(operation, scaled)
    spec = scaled["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    triggers = []
    for trigger in spec["triggers"]:
        names = set(re.findall(r"diptych:[a-z0-9_:]+", trigger["metadata"]["query"]))
        if len(names) != 1 or not names <= {QUEUE, REQUESTS}:
            raise UserError(f"{path}: the query uses {sorted(names)}; simulated are {QUEUE} and {REQUESTS}")
        triggers.append(
            Trigger(
                series=names.pop(),
                threshold=float(trigger["metadata"]["threshold"]),
                is_average=trigger.get("metricType", "AverageValue") == "AverageValue",
            )
        )
    return Rule(
        min_pods=spec["minReplicaCount"],
        max_pods=spec["maxReplicaCount"],
        up_window_s=behavior["scaleUp"]["stabilizationWindowSeconds"],
        up=[_policy(each) for each in behavior["scaleUp"]["policies"]],
        down_window_s=behavior["scaleDown"]["stabilizationWindowSeconds"],
        down=[_policy(each) for each in behavior["scaleDown"]["policies"]],
        triggers=triggers,
    )


def _apply(operation: dict[str, Any], scaled: Any) -> None:
    """`add` to the end of a list, or `replace`: what the overlay uses of RFC 6902."""
    *parents, last = operation["path"].strip("/").split("/")
    for key in parents:
        scaled = scaled[key]
    if last == "-":
        scaled.append(operation["value"])
    else:
        scaled[last] = operation["value"]


def _policy(written: dict[str, Any]) -> Policy:
    is_percent = written["type"] == "Percent"
    return Policy(is_percent=is_percent, value=written["value"], period_s=written["periodSeconds"])


def wanted(trigger: Trigger, value: float, num_pods: int, num_ready: int) -> int:
    """How many pods one metric asks for."""
    pods = num_pods if trigger.is_average else 1
    ratio = value / (trigger.threshold * max(1, pods))
    if abs(ratio - 1) <= TOLERANCE:
        return num_pods
    return math.ceil(value / trigger.threshold) if trigger.is_average else math.ceil(ratio * num_ready)


class Autoscaler:
    """Decides a number of pods; `decide` is to be called every SYNC_S with what Prometheus shows."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._asked: collections.deque[tuple[float, int]] = collections.deque()
        self._changes: list[tuple[float, int]] = []

    def decide(self, now_s: float, values: dict[str, float], num_pods: int, num_ready: int) -> int:
        """The new number. Empty `values` (no series yet) leave it as it is."""
        rule = self._rule
        if not values:
            return num_pods
        asked = max(wanted(each, values[each.series], num_pods, num_ready) for each in rule.triggers)
        if not self._asked:
            self._asked.append((now_s, num_pods))  # what it finds counts as asked for
        self._asked.append((now_s, asked))
        while self._asked[0][0] < now_s - max(rule.up_window_s, rule.down_window_s):
            self._asked.popleft()
        # The most cautious of each window: the least on the way up, the most on the way down.
        up = min([asked, *(n for at_s, n in self._asked if at_s > now_s - rule.up_window_s)])
        down = max([asked, *(n for at_s, n in self._asked if at_s > now_s - rule.down_window_s)])
        target = up if up > num_pods else down if down < num_pods else num_pods
        if target > num_pods:
            target = min(target, int(max(self._limit(rule.up, now_s, num_pods, +1))))
        elif target < num_pods:
            target = max(target, math.floor(min(self._limit(rule.down, now_s, num_pods, -1))))
        target = min(max(target, rule.min_pods), rule.max_pods)
        if target != num_pods:
            self._changes.append((now_s, target - num_pods))
        return target

    def _limit(self, policies: Sequence[Policy], now_s: float, num_pods: int, sign: int) -> Iterable[float]:
        for policy in policies:
            recent = [by for at_s, by in self._changes if at_s > now_s - policy.period_s and by * sign > 0]
            start = num_pods - sum(recent)
            yield math.ceil(start + sign * policy.change(start)) if sign > 0 else start - policy.change(start)


class Prometheus:
    """Counters of the pods as they were scraped, and the two series over the last minute."""

    def __init__(self) -> None:
        self._samples: dict[Pod, collections.deque[tuple[float, float, int, int]]] = {}

    def scrape(self, now_s: float, pods: Iterable[Pod]) -> None:
        for pod in pods:
            if not pod.is_up or pod.has_left:
                continue
            samples = self._samples.setdefault(pod, collections.deque())
            queue_s = sum(step.queue_s for step in pod.steps)
            samples.append((now_s, queue_s, sum(step.num_done for step in pod.steps), pod.num_ended))
        for pod, samples in list(self._samples.items()):
            while samples and samples[0][0] < now_s - WINDOW_S:
                samples.popleft()
            if not samples:
                del self._samples[pod]

    def record(self) -> dict[str, float]:
        """The recording rules. Rates are between the first and the last sample of the window."""
        spans = [(samples[0], samples[-1]) for samples in self._samples.values() if len(samples) > 1]
        if not spans:
            return {}
        rates = [
            [(b - a) / (last[0] - first[0]) for a, b in zip(first, last, strict=True)]
            for first, last in spans
        ]
        queue, done, requests = (sum(rate[at] for rate in rates) for at in (1, 2, 3))
        return {QUEUE: 1e6 * queue / done if done else 0.0, REQUESTS: requests}
