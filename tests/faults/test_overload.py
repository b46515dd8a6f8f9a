"""More than a server can take: what is accepted is answered, the rest is refused, nothing stays queued."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from bench.served import wait_for
from diptych_client import Client
from diptych_serving.server import Server, ServerConfig
from diptych_serving.traffic import outcomes
from tests.helpers.callers import calling
from tests.helpers.server_holdings import num_pending
from tests.helpers.tiny_repository import SlowImageEncoder, build_tiny_repository, script_to


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose queues hold eight requests and whose batches hold four."""
    repository = build_tiny_repository(tmp_path_factory.mktemp("overload") / "model_repository")
    script_to(repository / "image_encoder/1/model.pt", SlowImageEncoder())
    for config in repository.glob("*/config.pbtxt"):
        text = re.sub(r"max_queue_size: \d+", "max_queue_size: 8", config.read_text())
        text = re.sub(r"^max_batch_size: \d+", "max_batch_size: 4", text, flags=re.MULTILINE)
        config.write_text(re.sub(r"batch_size: 8\b", "batch_size: 4", text))
    with Server(repository, ServerConfig.on_free_ports()) as server:
        server.wait_until_ready()
        yield server


def test_a_full_queue_refuses_and_what_is_accepted_is_answered(narrow: Server) -> None:
    with calling([narrow.grpc_url, narrow.http_url], num_callers=64, pause_s=0.02) as traffic:
        assert traffic.wait_for_answers(30)
    assert outcomes(traffic.calls).keys() == {"Answer", "Overloaded"}
    refusals = {call.result.message for call in traffic.calls if not call.is_answered}
    # The second: whoever has waited a second at preprocess.
    assert any("Exceeds maximum queue size" in message for message in refusals), refusals
    words = ("Exceeds maximum queue size", "Request timeout expired")
    assert all(message.endswith(words) for message in refusals), refusals
    with Client(narrow.grpc_url, timeout_s=30) as grpc, Client(narrow.http_url, timeout_s=30) as http:
        answers = [client.classify(text="a red cat") for client in (grpc, http)]
    assert answers[0].probabilities == pytest.approx(answers[1].probabilities)
    assert wait_for(lambda: num_pending(narrow) == 0)
