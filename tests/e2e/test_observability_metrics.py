"""What the real server counts: inputs, refusals, answers, failures, signs of life."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from diptych_serving.metering import ALIVE
from diptych_serving.preprocessing import REASONS
from diptych_serving.release.control import Control
from diptych_serving.repository.layout import STEPS, write_loaded, write_pins
from diptych_serving.server import Server, ServerConfig, leftovers
from tests.helpers.raw_wire import Refused, ask_over_grpc, grpc_channel
from tests.helpers.tiny_repository import LABELS, build_tiny_repository

WAIT_S = 60
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')

Samples = dict[tuple[str, ...], float]


def read_samples(server: Server) -> Samples:
    """Name and labels' values in the order of their names, such as (NAME, reason, version)."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain")  # Prometheus 3 takes nothing else
        text = response.read().decode()
    return {
        (name, *(value for _, value in sorted(LABEL.findall(labels)))): float(value)
        for name, labels, value in SAMPLE.findall(text)
    }


def wait_for(server: Server, is_so: Callable[[Samples], bool]) -> Samples:
    """Metrics come within about a second."""
    deadline = time.monotonic() + WAIT_S
    while not is_so(samples := read_samples(server)):
        assert time.monotonic() < deadline, {key: value for key, value in samples.items() if value}
        time.sleep(0.2)
    return samples


def picture(width_px: int, height_px: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width_px, height_px), "red").save(file, "PNG")
    return file.getvalue()


# (image, text) and the reason for which it is refused
REFUSED = [
    (b"", b" ", "empty"),
    (b"no picture", b"red", "image_unknown_format"),
    (picture(40, 40)[:80], b"red", "image_damaged"),
    (b"", b"\xff\xfe", "text_not_utf8"),
    (b"", b"x" * 65537, "text_too_many_bytes"),
]
# With [CLS] and [SEP]: 4, 3 and no tokens.
ANSWERED = [(picture(40, 30), b"red cat"), (b"", b"red"), (picture(20, 10), b"")]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, of which the first is loaded, and two processes for the preprocessor."""
    path = build_tiny_repository(tmp_path_factory.mktemp("metrics") / "model_repository")
    for model in ("classifier", *STEPS):
        shutil.copytree(path / model / "1", path / model / "2")
    config = path / "preprocess/config.pbtxt"
    config.write_text(
        config.read_text().replace("instance_group [ { count: 1", "instance_group [ { count: 2")
    )
    return path


@pytest.fixture(scope="module")
def counted(repository: Path) -> Iterator[Server]:
    with Server(repository, ServerConfig.on_free_ports()) as running:
        running.wait_until_ready()
        wait_for(running, lambda samples: ("diptych_inputs_total", "1") in samples)
        time.sleep(1.5)  # what came before is handed over
        yield running
        running.kill()  # an orderly end waits half a minute for the process that a test has killed


def test_items_are_counted_by_what_they_hold_and_by_what_becomes_of_them(counted):
    before = read_samples(counted)
    with grpc_channel(counted) as channel:
        answers = [ask_over_grpc(channel, *item) for item in ANSWERED]
        for image, text, _ in REFUSED:
            with pytest.raises(Refused):
                ask_over_grpc(channel, image, text)
    total = len(ANSWERED) + len(REFUSED)
    wait_for(
        counted,
        lambda samples: (
            samples["diptych_inputs_total", "1"] == before["diptych_inputs_total", "1"] + total
            and sum(samples["diptych_predictions_total", label, "1"] for label in LABELS)
            == sum(before["diptych_predictions_total", label, "1"] for label in LABELS) + len(ANSWERED)
        ),
    )
    time.sleep(1.5)  # one sum of a process may come a moment before another
    after = read_samples(counted)
    grown = {key: after[key] - value for key, value in before.items() if after[key] != value}

    def growth(*key: str) -> float:
        return grown.get((*key, "1"), 0)

    assert {reason: growth("diptych_rejected_inputs_total", reason) for reason in REASONS} == {
        reason: [refused for *_, refused in REFUSED].count(reason) for reason in REASONS
    }
    assert growth("diptych_rejected_requests_total") == len(REFUSED)
    assert growth("diptych_decoded_pixels_total") == 40 * 30 + 20 * 10
    assert growth("diptych_tokens_total") == 4 + 3
    assert growth("diptych_absent_inputs_total", "image") == 1
    assert growth("diptych_absent_inputs_total", "text") == 1
    for index, label in enumerate(LABELS):
        of_label = [answer for answer in answers if answer.argmax() == index]
        assert growth("diptych_predictions_total", label) == len(of_label)
        confidence = sum(float(answer.max()) for answer in of_label)
        assert growth("diptych_prediction_confidence_total", label) == pytest.approx(confidence, abs=1e-5)
    # The rules rest on these two habits of tritonserver's.
    assert growth("nv_inference_request_failure", "classifier", "OTHER") == 2 * len(REFUSED)
    assert growth("nv_inference_request_success", "preprocess") == total


def test_no_series_holds_anything_that_a_caller_sent(counted):
    with grpc_channel(counted) as channel:
        ask_over_grpc(channel, b"", b"unmistakable")
        with contextlib.suppress(Refused):
            ask_over_grpc(channel, b"unmistakable", b"")
    time.sleep(1.5)
    assert not [key for key in read_samples(counted) if "unmistakable" in str(key)]


def test_versions_and_processes_come_and_go_under_load_and_the_counts_go_on(counted, repository):
    """Metrics that end with their process once took tritonserver with them."""

    def ask(channel, times: int) -> None:
        for _ in range(times):
            ask_over_grpc(channel, b"", b"red")

    with grpc_channel(counted) as channel, Control(counted.grpc_url) as control:
        ask(channel, 5)
        write_loaded(repository, [1, 2])
        for step in STEPS:
            control.load(step)
        write_pins(repository, 2)
        control.load("classifier")
        write_loaded(repository, [2])
        for step in STEPS:
            control.load(step)
            ask(channel, 2)
        wait_for(counted, lambda samples: samples["diptych_inputs_total", "2"] >= 2 * len(STEPS))
        samples = wait_for(
            counted,
            lambda samples: (
                samples[ALIVE, "tally_0_0", "tally", "1"] == 0  # ended in order
                and all(
                    time.time() - samples[ALIVE, f"{step}_0_0", step, "2"] < WAIT_S
                    for step in STEPS[1:]  # a preprocessor may have gone on under its other number
                )
            ),
        )
        assert samples["diptych_server_memory_bytes",] > 100 * 2**20


def test_a_process_that_is_killed_gives_no_sign_of_life_any_more(counted):
    pids = [
        pid
        for pid in leftovers.processes_of(counted._prefix)
        if b"tally/2/model.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert pids
    for pid in pids:  # one that was replaced may still be ending
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    key = (ALIVE, "tally_0_0", "tally", "2")
    samples = wait_for(counted, lambda samples: time.time() - samples[key] > 5)
    assert samples[key] > 0  # 0 is the orderly end
    others = [value for name, value in samples.items() if name[0] == key[0] and name[1:] != key[1:] and value]
    assert time.time() - max(others) < 5
