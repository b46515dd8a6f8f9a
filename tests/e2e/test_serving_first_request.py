"""What a server has done before its first request, what it drops, the settings that it was started with."""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from PIL import Image
from torch import Tensor
from tritonclient.utils import InferenceServerException

from diptych_serving.repository.settings import Settings
from diptych_serving.server import Server, ServerConfig
from tests.helpers.raw_wire import Refused, ask_over_grpc, grpc_channel
from tests.helpers.tiny_repository import TinyImageEncoder, build_tiny_repository, script_to

SETTINGS = Settings(
    preprocess_instances=2, image_encoder_instances=3, max_batch_size=16, preferred_batch_size=4
)


class Loud(TinyImageEncoder):
    """Says how many rows it is given, and how many of them hold a picture."""

    def forward(self, pixel_values: Tensor, image_present: Tensor) -> Tensor:
        print("rows", pixel_values.size(0), "present", int(image_present.sum()))  # noqa: T201  (all that a graph can tell)
        features = (pixel_values.float().mean(dim=[2, 3]) / 255).repeat(1, 171)[:, :512]
        return torch.where(image_present, features, torch.zeros_like(features))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("first")
    repository = build_tiny_repository(directory / "model_repository")
    script_to(repository / "image_encoder/1/model.pt", Loud())
    config = ServerConfig.on_free_ports(log=directory / "log", settings=SETTINGS)
    with Server(repository, config) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[triton.InferenceServerClient]:
    with grpc_channel(server) as channel:
        yield channel


def test_the_server_runs_with_the_settings_and_the_repository_keeps_its_own(server: Server) -> None:
    assert configuration(server, "image_encoder")["instance_group"][0]["count"] == 3
    assert configuration(server, "preprocess")["instance_group"][0]["count"] == 2
    for model in ("classifier", "preprocess", "image_encoder", "text_encoder", "fusion_head", "tally"):
        assert configuration(server, model)["max_batch_size"] == 16
    batching = configuration(server, "text_encoder")["dynamic_batching"]
    assert batching["preferred_batch_size"] == [4]
    assert "max_batch_size: 32" in (server.repository / "image_encoder/config.pbtxt").read_text()


def test_a_request_that_waits_longer_than_its_timeout_is_dropped(
    channel: triton.InferenceServerClient,
) -> None:
    assert ask_over_grpc(channel, b"", b"a red cat").shape == (3,)
    picture = large_picture()
    with ThreadPoolExecutor(32) as pool:
        busy = [pool.submit(ask_over_grpc, channel, picture, b"") for _ in range(8)]
        outcomes = [pool.submit(ask_with_timeout, channel, timeout_us=1000) for _ in range(8)]
        dropped = [outcome.result() for outcome in outcomes]
        assert all(future.result().shape == (3,) for future in busy)  # nobody else's wait is cut short
    assert "[StatusCode.UNAVAILABLE] in ensemble 'classifier', Request timeout expired" in dropped


def test_a_request_that_is_not_begun_within_the_queues_own_limit_is_refused(
    server: Server, channel: triton.InferenceServerClient
) -> None:
    policy = configuration(server, "preprocess")["dynamic_batching"]["default_queue_policy"]
    assert int(policy["default_timeout_microseconds"]) == 1_000_000
    picture = large_picture()

    def ask(_: int) -> str:
        try:
            return str(ask_over_grpc(channel, picture, b"").shape)
        except Refused as error:
            return str(error)

    # Two batches of 16 are begun with at once. To begin with the last of these within the second, a machine
    # would have to decode one of the pictures in 20 ms, where 60 are usual.
    with ThreadPoolExecutor(128) as pool:
        outcomes = set(pool.map(ask, range(128)))
    assert "(3,)" in outcomes
    (refusal,) = outcomes - {"(3,)"}
    assert "Request timeout expired" in refusal


def test_batches_were_warmed_up_in_several_sizes_and_then_no_larger_than_preferred(
    server: Server, channel: triton.InferenceServerClient
) -> None:
    picture = small_picture()
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda _: ask_over_grpc(channel, picture, b""), range(256)))
    server.stop()  # what instances print reaches the log when they end
    said = [line for line in server.log.read_text().splitlines() if line.startswith("rows")]
    for line in ("rows 1 present 1", "rows 4 present 4", "rows 8 present 8"):
        assert said.count(line) >= SETTINGS.image_encoder_instances
    sizes = {int(line.split()[1]) for line in said}
    assert sizes <= {1, 2, 3, 4, 8}


def small_picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


def ask_with_timeout(channel: triton.InferenceServerClient, *, timeout_us: int) -> str:
    """The error that a small request ends with, or nothing."""
    inputs = [
        triton.InferInput(name, [1, 1], "BYTES").set_data_from_numpy(np.array([[value]], np.object_))
        for name, value in (("image", b""), ("text", b"cat"))
    ]
    try:
        channel.infer("classifier", inputs, timeout=timeout_us)
    except InferenceServerException as error:
        return str(error)
    return ""


def large_picture() -> bytes:
    """Takes long to decode."""
    file = io.BytesIO()
    Image.effect_noise((1600, 1200), 60).convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()


def configuration(server: Server, model: str) -> dict:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server.http_url}/v2/models/{model}/config", timeout=30) as response:
        return json.load(response)
