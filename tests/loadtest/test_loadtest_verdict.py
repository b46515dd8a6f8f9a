"""From seconds to phases, from phases to the knee and the breaches."""

import dataclasses
import json
import math

import pytest

from diptych_serving.errors import UserError
from loadtest.objectives import Objectives, load_objectives
from loadtest.outcome import Outcome, find_knee, measure, percentile
from loadtest.plan import SOAK, SPIKE, STEP, Phase, make_plan
from loadtest.timeline import Second, Timeline
from loadtest.verdict import judge

OBJECTIVES = Objectives(p99_ms=100, error_share=0.01, throughput_per_s=20)


def outcome(offered_per_s: float, **changes: object) -> Outcome:
    """A phase that went well, but for the changes."""
    good = Outcome(
        phase=Phase(name=f"at {offered_per_s:g}", users=1, duration_s=10),
        num_seconds=10,
        num_offered=round(10 * offered_per_s),
        num_missed=0,
        offered_per_s=offered_per_s,
        answered_per_s=offered_per_s,
        error_share=0.0,
        p50_ms=10.0,
        p95_ms=20.0,
        p99_ms=30.0,
        generator_cpu=0.1,
        late_share=0.0,
    )
    return dataclasses.replace(good, **changes)


def test_a_call_counts_in_the_second_it_was_meant_to_start_in_and_its_end_in_that_of_the_end():
    timeline = Timeline()
    timeline.record_call(start_s=10.9, latency_ms=2300, is_late=False, is_good=True)
    timeline.record_call(start_s=11.0, latency_ms=5, is_late=True, is_good=False)
    timeline.record_missed(start_s=12.5)
    ten, eleven, twelve, thirteen = timeline.between(10, 14)
    assert (ten.offered, ten.ended_well, dict(ten.latencies_ms)) == (1, 0, {2300.0: 1})
    assert (eleven.offered, eleven.failed, eleven.late, eleven.latencies_ms.total()) == (1, 1, 1, 0)
    assert (twelve.offered, twelve.missed) == (1, 1)
    assert (thirteen.offered, thirteen.ended_well) == (0, 1)


def test_timelines_of_workers_add_up_on_their_way_through_a_message():
    master = Timeline()
    for cpu in (0.2, 0.6):
        worker = Timeline()
        worker.record_call(start_s=7.0, latency_ms=12.34, is_late=False, is_good=True)
        worker.record_generator(now_s=7.5, cpu=cpu)
        message = json.loads(json.dumps(worker.take()))
        assert worker.take() == []  # sent once
        master.merge(message)
    (second,) = master.between(7, 8)
    assert second == Second(offered=2, ended_well=2, latencies_ms={12.3: 2}, generator_cpu=0.6)


def test_percentiles_are_latencies_that_occurred():
    second = Second()
    second.latencies_ms.update({float(number): 1 for number in range(1, 101)})
    assert [percentile(second, share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert math.isnan(percentile(Second(), 0.99))


def test_a_phase_is_measured_without_the_seconds_in_which_it_settles():
    timeline = Timeline()
    for second in range(10):
        timeline.record_call(
            start_s=100 + second, latency_ms=900 if second < 2 else 10, is_late=False, is_good=True
        )
    plan = [Phase(name="first", users=1, duration_s=5), Phase(name="second", users=1, duration_s=5)]
    first, second = measure(plan, timeline, start_s=100.0, end_s=200.0, settle_s=2)
    assert (first.num_seconds, first.num_offered, first.p99_ms) == (3, 3, 10)
    assert (second.num_seconds, second.num_offered) == (3, 3)


def test_a_phase_that_a_stop_cut_short_is_measured_until_then_and_later_ones_not_at_all():
    plan = [Phase(name="first", users=1, duration_s=math.inf), Phase(name="second", users=1, duration_s=5)]
    (first,) = measure(plan, Timeline(), start_s=100.0, end_s=104.0, settle_s=1)
    assert first.num_seconds == 3


@pytest.mark.parametrize(
    "broken",
    [{"p99_ms": 101.0}, {"error_share": 0.02}, {"p99_ms": math.nan}, {"num_offered": 0}],
    ids=["slow", "failing", "no answers", "no calls"],
)
def test_the_knee_is_the_last_step_before_the_first_that_is_not_sustained(broken):
    steps = [outcome(10), outcome(20), outcome(30, **broken), outcome(40)]
    assert find_knee(steps, OBJECTIVES) is steps[1]


def test_a_step_load_is_judged_at_its_knee():
    phases = make_plan(STEP, users=3, duration_s=30)
    steps = [
        outcome(15, phase=phases[0]),
        outcome(25, phase=phases[1]),
        outcome(35, phase=phases[2], p99_ms=5000.0),
    ]
    assert judge(STEP, steps, OBJECTIVES).breaches == []
    (breach,) = judge(STEP, [steps[0], steps[2]], OBJECTIVES).breaches
    assert breach == "throughput_per_s: found 15.0 within the other objectives, required 20.0"


def test_a_step_load_without_a_knee_is_a_breach_of_what_its_lowest_step_missed():
    (breach,) = judge(STEP, [outcome(10, p99_ms=250.0)], OBJECTIVES).breaches
    assert breach == "p99_ms: found 250, allowed 100 (at 10, 10.0 calls/s offered, the lowest)"


def test_every_breach_is_named_with_what_was_found_and_what_is_allowed():
    verdict = judge("constant", [outcome(30, p99_ms=250.0, error_share=0.05)], OBJECTIVES)
    assert verdict.exit_code == 1
    assert verdict.breaches == [
        "error_share: found 5.000%, allowed 1.000% (at 30, 30.0 calls/s offered)",
        "p99_ms: found 250, allowed 100 (at 30, 30.0 calls/s offered)",
        "throughput_per_s: found 0.0 within the other objectives, required 20.0",
    ]


def test_too_little_load_to_show_the_throughput_is_said():
    (breach,) = judge("constant", [outcome(5)], OBJECTIVES).breaches
    assert breach.endswith("; no more than 5.0 were offered: raise --users")


def test_a_run_without_a_measured_phase_is_a_breach():
    assert judge("constant", [], OBJECTIVES).breaches == ["no phase lasted long enough to be measured"]


def test_the_rush_of_a_spike_may_turn_callers_away_but_not_what_comes_after_it():
    before, spike, recovery, after = make_plan(SPIKE, users=100, duration_s=100)
    outcomes = [
        outcome(25, phase=before),
        outcome(100, phase=spike, error_share=0.5),
        outcome(25, phase=recovery, p99_ms=900.0),
        outcome(25, phase=after),
    ]
    assert judge(SPIKE, outcomes, OBJECTIVES).exit_code == 0
    outcomes[3] = outcome(25, phase=after, p99_ms=900.0)
    (breach,) = judge(SPIKE, outcomes, OBJECTIVES).breaches
    assert breach.startswith("p99_ms: found 900, allowed 100 (after")


@pytest.mark.parametrize("limit", [{"generator_cpu": 0.95}, {"late_share": 0.02}, {"num_missed": 3}])
def test_a_generator_at_its_limit_is_said_with_the_phase_and_is_no_breach_by_itself(limit):
    verdict = judge("constant", [outcome(30, **limit)], OBJECTIVES)
    (warning,) = verdict.warnings
    assert warning.startswith("at 30, 30.0 calls/s offered: the load generator was at its limit (")
    assert verdict.exit_code == 0


def test_steps_rise_evenly_to_the_most_users_and_fill_the_time():
    steps = make_plan(STEP, users=80, duration_s=160)
    assert [step.users for step in steps] == [10, 20, 30, 40, 50, 60, 70, 80]
    assert {step.duration_s for step in steps} == {20}


def test_a_soak_holds_its_load_in_parts_that_are_all_judged():
    ramp, *parts = make_plan(SOAK, users=30, duration_s=100)
    assert not ramp.is_judged
    assert all(part.is_judged and part.users == 30 and part.duration_s == 18 for part in parts)


def test_a_shape_needs_to_know_how_long_it_may_take():
    with pytest.raises(UserError, match="--shape step needs --run-time"):
        make_plan(STEP, users=10, duration_s=None)
    (phase,) = make_plan("constant", users=10, duration_s=None)
    assert phase.duration_s == math.inf


def test_the_shipped_objectives_can_be_read(request):
    assert load_objectives(request.config.rootpath / "loadtest/slo.toml").error_share == 0.001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p99 = 3", r"unknown key 'p99'\. Did you mean 'p99_ms'\? Known keys: p99_ms, error_share, thr"),
        ("p99_ms = 3", "missing required field `error_share`"),
        ("p99_ms = 3\nerror_share = 2\nthroughput_per_s = 1", r"<= 1.0 - at `\$\.error_share`"),
        ("p99_ms 3", "not valid TOML"),
    ],
)
def test_objectives_that_cannot_be_meant_are_refused(tmp_path, text, message):
    path = tmp_path / "slo.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_objectives(path)
