"""Strangers who call each step directly with hostile tensors: no good answer changes, and none fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from diptych_serving.server import Server
from tests.helpers.hostile_tensors import Tensors, of_equal_shape, of_other_shapes
from tests.helpers.raw_wire import TIMEOUT_S, Item, ask_over_grpc, grpc_channel, infer

SIZE_PX, MAX_TOKENS = 64, 24  # of the tiny config
NUM_CALLS, NUM_CALLERS, NUM_STRANGERS = 300, 6, 3
COMPANY = 1e-5  # batches of other sizes add the same numbers in another order
FEATURES = np.zeros((1, 512), np.float32)
TALLY = {
    "of too many labels": np.full((1, 100_000), 0.5, np.float32),
    "of one label": np.ones((1, 1), np.float32),
    "not a number": np.full((1, 3), np.nan, np.float32),
    "infinite": np.full((1, 3), np.inf, np.float32),
}


def hostile_calls() -> list[tuple[str, str, Tensors]]:
    """Step, name of the case, inputs."""
    shapes = (of_equal_shape(SIZE_PX, MAX_TOKENS), of_other_shapes())
    calls = [
        (step, name, tensors)
        for cases in shapes
        for step, named in cases.items()
        for name, tensors in named.items()
    ]
    return [*calls, *(("tally", name, {"fused_probabilities": tensor}) for name, tensor in TALLY.items())]


def call_step(channel: triton.InferenceServerClient, step: str, tensors: Tensors) -> triton.InferResult:
    inputs = [
        triton.InferInput(name, tensor.shape, np_to_triton_dtype(tensor.dtype)).set_data_from_numpy(tensor)
        for name, tensor in tensors.items()
    ]
    return channel.infer(step, inputs, client_timeout=TIMEOUT_S)


@pytest.fixture
def channel(server: Server) -> Iterator[triton.InferenceServerClient]:
    with grpc_channel(server) as opened:
        yield opened


def test_every_step_answers_any_tensor_of_a_valid_shape(channel: triton.InferenceServerClient) -> None:
    for step, name, tensors in hostile_calls():
        answer = call_step(channel, step, tensors)
        assert answer.get_response().outputs, f"{step}, {name}"


@pytest.mark.parametrize("item", [(b"\xff\xd8 no JPEG", b""), (b"", b"\xff\xfe"), (b"", b"")])
def test_preprocess_answers_a_bad_item_with_an_error_of_its_own(
    channel: triton.InferenceServerClient, item: Item
) -> None:
    with pytest.raises(Exception, match="preprocess: ") as refused:
        infer(channel, "preprocess", [item])
    assert getattr(refused.value, "status", "") == "INVALID_ARGUMENT"


def test_no_good_answer_changes_while_strangers_call_the_steps(
    channel: triton.InferenceServerClient, items: list[Item]
) -> None:
    """Their rows share batches with those of the ensemble's callers."""
    normal = [ask_over_grpc(channel, *item) for item in items]
    is_over = threading.Event()
    failed: list[str] = []
    num_calls = 0

    def intrude() -> None:
        nonlocal num_calls
        for step, name, tensors in cycle(hostile_calls()):
            if is_over.is_set():
                return
            try:
                call_step(channel, step, tensors)
                num_calls += 1
            except InferenceServerException as error:
                failed.append(f"{step}, {name}: {error.message()}")

    def ask(number: int) -> None:
        found = ask_over_grpc(channel, *items[number % len(items)])
        np.testing.assert_allclose(found, normal[number % len(items)], rtol=0, atol=COMPANY)

    with ThreadPoolExecutor(NUM_STRANGERS) as strangers:
        for _ in range(NUM_STRANGERS):
            strangers.submit(intrude)
        try:
            with ThreadPoolExecutor(NUM_CALLERS) as callers:
                list(callers.map(ask, range(NUM_CALLS)))
        finally:
            is_over.set()
    assert failed == []
    assert num_calls > len(hostile_calls())
