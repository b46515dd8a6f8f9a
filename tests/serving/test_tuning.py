"""The search for settings, and the file and the configs that carry what it found."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from diptych_serving.errors import UserError
from diptych_serving.repository.layout import serving_version, write_loaded_of, write_pins
from diptych_serving.repository.settings import (
    Settings,
    apply_settings,
    load_settings,
    save_settings,
)
from diptych_serving.repository.tuned_copy import make_copy, update_copy
from diptych_serving.traffic import (
    ClosedLoop,
    Recording,
    constant,
    load_items,
    poisson,
    save_items,
    send_on_time,
    shared,
)
from diptych_serving.tuning.chart import plot_trials
from diptych_serving.tuning.load import Load, judge
from diptych_serving.tuning.search import Trial, axes_for, search
from tests.helpers.repository_files import lay_out_repository

LIMIT_MS = 100.0
NUM_ITEMS = 30
TUNED = Settings(
    preprocess_instances=2,
    image_encoder_instances=3,
    text_encoder_instances=4,
    encoder_threads=2,
    max_batch_size=16,
    preferred_batch_size=4,
    encoder_queue_size=0,
    max_queue_delay_us=700,
    precision="int8",
)


def make_load(items_per_s: float, p99_ms: float, *, num_errors: int = 0) -> Load:
    return Load(
        concurrency=4,
        num_items=100,
        num_answered=100,
        num_errors=num_errors,
        items_per_s=items_per_s,
        p50_ms=p99_ms / 2,
        p95_ms=p99_ms,
        p99_ms=p99_ms,
        client_cpu_ms=1.0,
    )


def a_machine(settings: Settings) -> Trial:
    """Two image encoders suit it best; a cap on batches breaks the limit; threads cost a little."""
    items_per_s = {1: 50.0, 2: 90.0}.get(settings.image_encoder_instances, 70.0)
    p99_ms = 60.0 + 50 * settings.preferred_batch_size
    return Trial(settings=settings, loads=[make_load(items_per_s - 5 * settings.encoder_threads, p99_ms)])


@pytest.mark.parametrize("num_cores", [1, 2, 16])
def test_every_core_gets_an_image_encoder_and_gpus_get_decoders(num_cores: int) -> None:
    on_cpu = Settings.for_cores(num_cores)
    assert on_cpu.image_encoder_instances == num_cores
    assert 1 <= on_cpu.text_encoder_instances <= num_cores
    on_gpu = Settings.for_cores(num_cores, on_gpu=True)
    assert on_gpu.image_encoder_instances == on_gpu.text_encoder_instances == 1
    assert 1 <= on_gpu.preprocess_instances <= num_cores


def test_the_search_finds_the_best_settings_and_stops_when_none_helps() -> None:
    best, trials = search(Settings(), axes_for(4, ["auto"]), a_machine, lambda _: True, LIMIT_MS)
    assert best == Settings(image_encoder_instances=2)
    assert len(trials) < 40


def test_no_trial_begins_that_the_budget_does_not_hold() -> None:
    num_trials = 0

    def run_trial(settings: Settings) -> Trial:
        nonlocal num_trials
        num_trials += 1
        return a_machine(settings)

    search(Settings(), axes_for(4, ["auto"]), run_trial, lambda more: num_trials + more <= 5, LIMIT_MS)
    assert num_trials == 5


def test_a_gain_within_the_noise_is_no_reason_to_leave_what_is_shipped() -> None:
    def run_trial(settings: Settings) -> Trial:
        gain = 0.02 if settings.text_encoder_instances > 1 else 0.0
        return Trial(settings=settings, loads=[make_load(100 * (1 + gain), 50)])

    tried = []
    search(
        Settings(),
        {"text_encoder_instances": [1, 2], "preprocess_instances": [1, 2]},
        lambda settings: tried.append(settings) or run_trial(settings),  # type: ignore[func-returns-value]
        lambda _: True,
        LIMIT_MS,
    )
    assert Settings(text_encoder_instances=2, preprocess_instances=2) not in tried


def test_throughput_over_the_limit_or_with_errors_does_not_count() -> None:
    slow, failing = make_load(500, 101), make_load(400, 50, num_errors=1)
    trial = Trial(settings=Settings(), loads=[make_load(30, 40), slow, failing])
    assert trial.best(LIMIT_MS).items_per_s == 30
    assert Trial(settings=Settings(), loads=[slow]).score(LIMIT_MS) < 1


def test_settings_are_written_into_every_config_and_comments_stay(tmp_path: Path) -> None:
    repository = lay_out_repository(tmp_path / "model_repository")
    before = {path: path.read_text() for path in repository.glob("*/config.pbtxt")}
    apply_settings(TUNED, repository)
    configs = {
        path.parent.name: text_format.Parse(path.read_text(), ModelConfig())
        for path in repository.glob("*/config.pbtxt")
    }
    assert {config.max_batch_size for config in configs.values()} == {16}
    instances = {
        name: config.instance_group[0].count for name, config in configs.items() if config.instance_group
    }
    assert instances == {"preprocess": 2, "image_encoder": 3, "text_encoder": 4, "fusion_head": 1, "tally": 1}
    for name in ("image_encoder", "text_encoder"):
        assert configs[name].parameters["INTRA_OP_THREAD_COUNT"].string_value == "2"
        assert configs[name].dynamic_batching.max_queue_delay_microseconds == 700
        assert configs[name].dynamic_batching.preferred_batch_size == [4]
        policy = configs[name].dynamic_batching.default_queue_policy
        # All three, or Triton does not stage the next batch.
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (0, 0)
        assert not policy.allow_timeout_override
    for path, text in before.items():
        assert path.read_text().count("#") == text.count("#")

    apply_settings(Settings(), repository)
    assert {path: path.read_text() for path in repository.glob("*/config.pbtxt")} == before


def test_a_tuned_copy_shares_the_files_and_leaves_the_original_alone(tmp_path: Path) -> None:
    repository, copy = lay_out_repository(tmp_path / "model_repository"), tmp_path / "copy"
    make_copy(TUNED, repository, copy)
    assert (copy / "image_encoder/1/model.pt").samefile(repository / "image_encoder/1/model.pt")
    assert "max_batch_size: 32" in (repository / "classifier/config.pbtxt").read_text()
    assert "max_batch_size: 16" in (copy / "classifier/config.pbtxt").read_text()


def test_a_tuned_copy_follows_what_a_release_changes_and_touches_nothing_else(tmp_path: Path) -> None:
    repository, copy = lay_out_repository(tmp_path / "model_repository"), tmp_path / "copy"
    make_copy(TUNED, repository, copy)
    untouched = (copy / "tally/config.pbtxt").stat()
    for model in ("classifier", "image_encoder"):
        shutil.copytree(repository / model / "1", repository / model / "2")
    write_loaded_of(repository, "image_encoder", [1, 2])
    write_pins(repository, 2)
    update_copy(copy)
    config = (copy / "image_encoder/config.pbtxt").read_text()
    assert "versions: [ 1, 2 ]" in config
    assert f"max_batch_size: {TUNED.max_batch_size}" in config
    assert serving_version(copy) == 2
    assert (copy / "image_encoder/2/model.pt").is_file()
    assert not (copy / "classifier/2").is_symlink()
    assert (copy / "tally/config.pbtxt").stat().st_mtime_ns == untouched.st_mtime_ns
    for model in ("classifier", "image_encoder"):
        shutil.rmtree(repository / model / "1")
    update_copy(copy)
    assert sorted(path.name for path in copy.glob("*encoder/1")) == ["1"]  # text_encoder's alone
    assert not (copy / "classifier/1").exists()


def test_a_config_that_was_rewritten_by_hand_is_named(tmp_path: Path) -> None:
    repository = lay_out_repository(tmp_path / "model_repository")
    config = repository / "image_encoder/config.pbtxt"
    config.write_text(config.read_text().replace("instance_group [ { count: 1 } ]", "instance_group []"))
    with pytest.raises(UserError, match=r"image_encoder/config.pbtxt: 0 lines match .*by hand"):
        apply_settings(TUNED, repository)


def test_settings_survive_their_file(tmp_path: Path) -> None:
    save_settings(TUNED, tmp_path / "tuning.toml", "Found by a test.\nOn a machine.")
    assert load_settings(tmp_path / "tuning.toml") == TUNED
    assert (tmp_path / "tuning.toml").read_text().startswith("# Found by a test.\n# On a machine.\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch = 3", "unknown key 'max_batch'. Did you mean 'max_batch_size'\\? Known keys: "),
        ("max_batch_size = 0", r"Expected `int` >= 8 - at `\$.max_batch_size`"),
        ("preferred_batch_size = 64", "preferred_batch_size 64 is above max_batch_size 32"),
        ("max_batch_size = ", "not valid TOML"),
        ('precision = "int4"', r"Invalid enum value 'int4' - at `\$.precision`"),
    ],
)
def test_a_file_that_is_no_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tuning.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_settings(tmp_path / "tuning.toml")


def test_a_missing_file_is_sent_to_tune(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.toml: no such file. Make one: diptych tune REPO"):
        load_settings(tmp_path / "nothing.toml")


def test_items_survive_their_file(tmp_path: Path) -> None:
    items = [(b"\x00picture\x00", "wörds"), (b"", "alone"), (b"\xff", "")]
    save_items(items, tmp_path / "items")
    assert load_items(tmp_path / "items") == items


def test_what_fails_is_counted_and_is_no_answer() -> None:
    def send(item: str) -> None:
        if item == "bad":
            raise OSError("refused")

    begin_s = time.monotonic()
    with ClosedLoop([shared(send)] * 2, ["good", "bad"], num_calls=20) as loop:
        loop.join()
    early = begin_s + 0.5 * (loop.calls[-1].end_s - begin_s)
    late = time.monotonic()
    load = judge(Recording(calls=loop.calls, begin_s=early, end_s=late, cpu_s=0.1), concurrency=2)
    assert load.num_answered == load.num_errors == 10
    assert 0 < load.num_items <= load.num_answered


def test_callers_end_at_their_outcome_and_what_could_not_be_opened_is_raised() -> None:
    def refuse(_: None) -> None:
        raise OSError("refused")

    with ClosedLoop([shared(refuse)] * 3, [None], stops_at=lambda call: not call.is_answered) as loop:
        loop.join()
    assert [str(call.result) for call in loop.calls] == 3 * ["refused"]

    def broken() -> NoReturn:
        raise UserError("no such server")

    with pytest.raises(UserError, match="no such server"), ClosedLoop([shared(refuse), broken], [None]):
        pass


def test_an_open_loop_counts_from_the_instant_that_was_meant() -> None:
    """A server that stands still holds up every call that falls due meanwhile, not only those in flight."""
    is_awake = asyncio.Event()

    async def send(item: int) -> None:
        if item == NUM_ITEMS - 1:
            is_awake.set()
        await is_awake.wait()

    calls = asyncio.run(send_on_time(send, range(NUM_ITEMS), constant(100, NUM_ITEMS / 100)))
    starts_s = [call.start_s for call in sorted(calls, key=lambda call: call.item)]
    assert np.diff(starts_s) == pytest.approx(np.full(NUM_ITEMS - 1, 0.01))
    assert max(call.latency_ms for call in calls) > 1000 * (starts_s[-1] - starts_s[0])


def test_random_arrivals_are_as_many_as_asked_and_the_same_again() -> None:
    offsets_s = list(poisson(100, 50))
    assert offsets_s == list(poisson(100, 50))
    assert len(offsets_s) == pytest.approx(5000, rel=0.05)
    gaps_s = np.diff(offsets_s)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.1)  # of an exponential distribution


def test_the_chart_is_drawn(tmp_path: Path) -> None:
    trials = [a_machine(Settings()), a_machine(dataclasses.replace(Settings(), image_encoder_instances=2))]
    plot_trials(trials, trials[1].settings, LIMIT_MS, tmp_path / "tuning.png")
    assert (tmp_path / "tuning.png").stat().st_size > 10_000
