"""More than a server can take: what is accepted is answered, the rest is refused, nothing stays queued."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator

import pytest
import torch
from serving_process import wait_for
from tiny_repository import TinyImageEncoder, build_tiny_repository, script_to
from torch import Tensor
from traffic import Traffic

from diptych.serving import Server
from diptych_client import Answer, Client, Overloaded


class SlowImageEncoder(TinyImageEncoder):
    """Tens of milliseconds a batch, as a real one."""

    def forward(self, pixel_values: Tensor, image_present: Tensor) -> Tensor:
        colour = pixel_values.float().mean(dim=[2, 3]) / 255
        busy = torch.ones(256, 256) * (1 + colour.mean())  # of an input, or freezing would work it out
        for _ in range(20):
            busy = torch.mm(busy, busy).clamp(0.0, 1.0)
        features = (colour + 0 * busy.mean()).repeat(1, 171)[:, :512]
        return torch.where(image_present, features, torch.zeros_like(features))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose queues hold eight requests and whose batches hold four."""
    repository = build_tiny_repository(tmp_path_factory.mktemp("overload") / "model_repository")
    script_to(repository / "image_encoder/1/model.pt", SlowImageEncoder())
    for config in repository.glob("*/config.pbtxt"):
        text = re.sub(r"max_queue_size: \d+", "max_queue_size: 8", config.read_text())
        text = re.sub(r"^max_batch_size: \d+", "max_batch_size: 4", text, flags=re.MULTILINE)
        config.write_text(re.sub(r"batch_size: 8\b", "batch_size: 4", text))
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        server.wait_until_ready()
        yield server


def num_pending(server: Server) -> float:
    """Requests that are in some queue."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.metrics_url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    gauges = [line for line in lines if line.startswith("nv_inference_pending_request_count{")]
    assert gauges
    return sum(float(line.split()[-1]) for line in gauges)


def test_a_full_queue_refuses_and_what_is_accepted_is_answered(narrow: Server) -> None:
    with Traffic([narrow.grpc_url, narrow.http_url], num_callers=64, pause_s=0.02) as traffic:
        assert traffic.wait_for_answers(30)
    assert traffic.broken == []
    assert traffic.kinds().keys() == {Answer, Overloaded}
    refusals = {outcome.message for outcome in traffic.outcomes if isinstance(outcome, Overloaded)}
    assert all("Exceeds maximum queue size" in message for message in refusals), refusals
    with Client(narrow.grpc_url, timeout_s=30) as grpc, Client(narrow.http_url, timeout_s=30) as http:
        answers = [client.classify(text="a red cat") for client in (grpc, http)]
    assert answers[0].probabilities == pytest.approx(answers[1].probabilities)
    assert wait_for(lambda: num_pending(narrow) == 0)
