"""The simulation of many pods: queues against closed formulas, rules against the files they come from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from bench.scale.autoscaler import QUEUE, REQUESTS, Autoscaler, Policy, Rule, Trigger, load_rule
from bench.scale.cluster import NOT_READY_S, Cluster, Times, load_times
from bench.scale.costs import Costs, StepCost, StepPlan, read_plans
from bench.scale.fleet import Fleet, Found, Shape, run_steadily
from bench.scale.questions import by_span, replicas
from diptych_client import Retries
from diptych_serving.repository.layout import STEPS
from diptych_serving.repository.settings import Settings

ROOT = Path(__file__).parents[2]
SCALED_OBJECT = ROOT / "docker/kubernetes/components/autoscaling/scaled-object.yaml"
SERVICE_MS = 10.0
# Quantiles of an exponential distribution, as multiples of its mean.
EXPONENTIAL = [-math.log(1 - (number + 0.5) / 2000) for number in range(2000)]


def one_step(
    num_servers: int, *, items: list[float] | None = None, timeout_s: float = 0.0, queue_size: int = 0
) -> Shape:
    """Pods of one step without batches, each instance on a core of its own."""
    costs = Costs(
        steps={"image_encoder": StepCost(fixed_ms=0.0, row_ms=SERVICE_MS)},
        front_ms=0.0,
        idle_ms=0.0,
        items=[{"image_encoder": factor} for factor in items or [1.0]],
        item_bytes=1000,
        start_s=1,
        release_mib=1,
        release_files=1,
        num_series=1,
        measured={},
    )
    plan = StepPlan(
        name="image_encoder",
        num_instances=num_servers,
        num_joined=1,
        queue_size=queue_size,
        timeout_s=timeout_s,
    )
    return Shape(
        costs=costs, plans=[plan], num_cores=num_servers, num_callers=2, retries=Retries(max_attempts=1)
    )


def erlang_c(num_servers: int, load: float) -> float:
    """The probability that an arrival of an M/M/c queue waits; load: arrivals over one server's rate."""
    waiting = load**num_servers / math.factorial(num_servers) * num_servers / (num_servers - load)
    return waiting / (sum(load**k / math.factorial(k) for k in range(num_servers)) + waiting)


@pytest.mark.parametrize("num_servers", [1, 3])
def test_latency_is_that_of_the_closed_formula(num_servers: int) -> None:
    rate_per_s = 0.6 * num_servers * 1000 / SERVICE_MS
    fleet = Fleet(one_step(num_servers, items=EXPONENTIAL))
    fleet.add()
    fleet.offer(lambda _: rate_per_s, until_s=12_000 / rate_per_s)
    fleet.env.run()
    load = rate_per_s * SERVICE_MS / 1000
    expected_ms = SERVICE_MS + erlang_c(num_servers, load) * SERVICE_MS / (num_servers - load)
    assert 1000 * np.mean([call.latency_s for call in fleet.calls]) == pytest.approx(expected_ms, rel=0.05)


def test_the_same_seed_gives_the_same_history() -> None:
    shape = one_step(2, items=EXPONENTIAL)

    def run(seed: int) -> Found:
        return run_steadily(shape, num_pods=2, rate_per_s=300, duration_s=5, p99_ms=500, seed=seed)

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_a_request_that_waits_longer_than_the_queue_allows_is_refused() -> None:
    found = run_steadily(one_step(1, timeout_s=1.0), num_pods=1, rate_per_s=200, duration_s=10, p99_ms=500)
    assert (
        0.5 < found.error_share < 0.8
    )  # an arrival wakes the queue, not a free instance: docs/triton.md, 18
    assert 900 < found.p99_ms < 1000 + 2 * SERVICE_MS


def test_a_full_queue_refuses_at_once() -> None:
    fleet = Fleet(one_step(1, queue_size=4))
    fleet.add()
    fleet.offer(lambda _: 200, until_s=5)
    fleet.env.run()
    refused = [call.latency_s for call in fleet.calls if not call.is_answered]
    assert len(refused) > 100
    assert max(refused) == 0


def test_a_lost_zone_takes_its_share_of_the_capacity_until_others_start() -> None:
    fleet = Fleet(one_step(1))
    cluster = Cluster(fleet, Times(start_s=30, settle_s=10, pre_stop_s=10), 3, rule=None)
    fleet.offer(lambda _: 250, until_s=120)  # 83 % of three pods, more than two can do
    cluster.lose_zone(0, at_s=30)
    fleet.env.run(130)
    shares = dict(by_span(fleet.calls, 15, 500))
    assert shares[0].error_share == 0
    assert shares[60].error_share > 0.05
    assert len(fleet.directory.addresses) == 2
    assert [count[1] for count in cluster.counts if count[0] > 30 + NOT_READY_S][:1] == [2]


def test_a_rollout_loses_no_call() -> None:
    fleet = Fleet(dataclasses.replace(one_step(1), retries=Retries()))
    cluster = Cluster(fleet, Times(start_s=20, settle_s=10, pre_stop_s=10), 2, rule=None)
    fleet.offer(lambda _: 100, until_s=120)
    old = fleet.directory.addresses
    cluster.roll_out(at_s=10)
    fleet.env.run(130)
    assert not set(old) & set(fleet.directory.addresses)
    assert all(call.is_answered for call in fleet.calls)


def rule(**changes: object) -> Rule:
    doubling = Policy(is_percent=True, value=100, period_s=60)
    one_less = Policy(is_percent=False, value=1, period_s=120)
    written = Rule(
        min_pods=2,
        max_pods=8,
        up_window_s=30,
        up=[doubling],
        down_window_s=600,
        down=[one_less],
        triggers=[Trigger(series=QUEUE, threshold=20_000, is_average=False)],
    )
    return dataclasses.replace(written, **changes)  # type: ignore[arg-type]


def test_the_autoscaler_doubles_at_most_once_in_a_minute() -> None:
    autoscaler, num_pods = Autoscaler(rule()), 2
    history = []
    for now_s in range(0, 121, 15):
        num_pods = autoscaler.decide(now_s, {QUEUE: 1e6}, num_pods, num_pods)
        history.append(num_pods)
    assert history == [2, 2, 4, 4, 4, 4, 8, 8, 8]


def test_the_autoscaler_waits_ten_minutes_and_takes_one_pod_at_a_time() -> None:
    autoscaler, num_pods = Autoscaler(rule()), 2
    autoscaler.decide(0, {QUEUE: 40_000}, 2, 2)
    num_pods, when = 4, []
    for now_s in range(15, 1000, 15):
        smaller = autoscaler.decide(now_s, {QUEUE: 0}, num_pods, num_pods)
        if smaller != num_pods:
            when.append((now_s, smaller))
            num_pods = smaller
    assert when == [(600, 3), (720, 2)]


def test_an_average_asks_for_as_many_pods_as_the_total_needs() -> None:
    requests = Trigger(series=REQUESTS, threshold=60, is_average=True)
    autoscaler = Autoscaler(rule(triggers=[requests], up_window_s=0))
    assert autoscaler.decide(0, {REQUESTS: 125}, 2, 2) == 2  # within the tolerance
    assert autoscaler.decide(15, {REQUESTS: 150}, 2, 2) == 3
    assert autoscaler.decide(30, {}, 3, 3) == 3


def test_the_rule_and_the_times_are_read_from_the_manifests() -> None:
    written = load_rule(SCALED_OBJECT)
    patched = load_rule(SCALED_OBJECT, ROOT / "docker/kubernetes/overlays/cpu/scale-on-requests.yaml")
    assert written.min_pods >= 2
    assert [trigger.series for trigger in written.triggers] == [QUEUE]
    assert [trigger.series for trigger in patched.triggers] == [QUEUE, REQUESTS]
    assert (written.up_window_s, patched.up_window_s) == (30, 0)
    assert load_times(ROOT / "docker/kubernetes/base/deployment.yaml", 60).pre_stop_s > 0


def test_the_queues_are_read_from_the_configs() -> None:
    plans = {plan.name: plan for plan in read_plans(ROOT / "model_repository", Settings.for_cores(4))}
    assert list(plans) == list(STEPS)
    first, encoder = plans["preprocess"], plans["image_encoder"]
    assert (first.timeout_s, first.queue_size, first.is_staged) == (1.0, 256, False)
    assert (encoder.num_instances, encoder.num_joined, encoder.is_staged) == (4, 4, True)


def test_a_lost_zone_leaves_enough_pods() -> None:
    found = replicas(1000, knee_per_s=100)
    assert (found.num_needed, found.num_kept) == (10, 15)
