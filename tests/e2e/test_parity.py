"""Training and serving give the same: tokens and pixels to the bit, probabilities to 1e-5."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton

from diptych.evaluation.predict import predict
from diptych.runs.run import Run
from diptych_client import Answer, Client, InvalidInput
from diptych_serving.preprocessing import Row
from diptych_serving.server import Server
from tests.helpers.hostile_inputs import odd_items
from tests.helpers.raw_wire import Item, ask_over_grpc, grpc_channel, infer

TENSORS = ("pixel_values", "image_present", "input_ids", "attention_mask")
# Batches of other sizes add the same numbers in another order: 1.3e-6 here between 1 row and 32.
COMPANY = 1e-5


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[triton.InferenceServerClient]:
    with grpc_channel(server) as channel:
        yield channel


@pytest.fixture(scope="module", params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    with Client(getattr(server, f"{request.param}_url"), timeout_s=30) as client:
        yield client


def classify(client: Client, item: Item) -> Answer:
    image, text = item
    return client.classify(image=image or None, text=text.decode() or None)


def test_pixels_and_tokens_are_the_servers_to_the_bit(
    channel: triton.InferenceServerClient, tiny_run: Run, items: list[Item]
) -> None:
    asked = [*items, *((odd.image, odd.text) for odd in odd_items())]
    rows = tiny_run.preprocessor.rows(asked)
    for start in range(0, len(asked), 7):  # alone and in company
        expected = rows[start : start + 7]
        served = infer(channel, "preprocess", asked[start : start + 7], version="1")
        for name in TENSORS:
            tensor = served.as_numpy(name)
            assert len(tensor) == len(expected)
            for row, found in zip(expected, tensor, strict=True):
                assert isinstance(row, Row)
                wanted = np.atleast_1d(getattr(row, name))
                assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
                assert found.tobytes() == wanted.tobytes(), name


def test_the_served_probabilities_are_the_eager_models(
    client: Client, tiny_run: Run, items: list[Item]
) -> None:
    for item in items:
        image, text = item
        answer = classify(client, item)
        eager = predict(tiny_run, image, text.decode())
        assert answer.label == next(iter(eager))
        assert list(answer.probabilities) == tiny_run.labels
        assert answer.probabilities == pytest.approx(eager, abs=1e-5)


def test_a_rows_answer_is_the_same_in_a_batch_of_strangers(
    channel: triton.InferenceServerClient, items: list[Item]
) -> None:
    alone = np.stack([ask_over_grpc(channel, *item) for item in items])
    assert np.ptp(alone, axis=0).max() > 0.5  # answers that could be told apart if they were mixed up
    largest = (items * 2)[:32]
    together = infer(channel, "classifier", largest).as_numpy("probabilities")
    np.testing.assert_allclose(together, np.concatenate([alone, alone])[:32], rtol=0, atol=COMPANY)


def test_a_rows_answer_is_the_same_among_concurrent_calls(
    client: Client, channel: triton.InferenceServerClient, items: list[Item]
) -> None:
    alone = [classify(client, item).probabilities for item in items]
    before = count_executions(channel)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda item: classify(client, item), items * 3))
    for answer, expected in zip(answers, alone * 3, strict=True):
        assert answer.probabilities == pytest.approx(expected, abs=COMPANY)
    batch_sizes = count_executions(channel) - before
    assert max(batch_sizes) > 1, f"nothing was batched, so nothing was shown: {batch_sizes}"


def test_one_modality_is_enough_and_each_counts(client: Client, items: list[Item]) -> None:
    image, text = items[0]
    answers = [classify(client, item).probabilities for item in ((image, text), (image, b""), (b"", text))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert answers[one] != pytest.approx(answers[other], rel=1e-3, abs=1e-9)


def test_nothing_at_all_is_the_callers_error(client: Client) -> None:
    with pytest.raises(InvalidInput, match="found both empty; accepted: an image, a text, or both") as caught:
        client.classify()
    assert caught.value.field == "image and text"


def count_executions(channel: triton.InferenceServerClient) -> collections.Counter[int]:
    """How often the fusion head has run, by batch size."""
    statistics = channel.get_inference_statistics("fusion_head").model_stats[0]
    return collections.Counter(
        {batch.batch_size: batch.compute_infer.count for batch in statistics.batch_stats}
    )
