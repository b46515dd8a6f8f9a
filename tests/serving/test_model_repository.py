"""The hand-written configs: each parses, and they chain up."""

import itertools
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

SOURCE = Path(__file__).parents[2] / "model_repository"
MODELS = ["classifier", "fusion_head", "image_encoder", "preprocess", "tally", "text_encoder"]
TORCHSCRIPT = ["fusion_head", "image_encoder", "text_encoder"]
# What the native LibTorch backend of 24.10 to 26.06 reads; others it would ignore without a word.
# CPU_RUNTIME is ours: the Python-based backend reads it.
PARAMETERS = {"ENABLE_JIT_PROFILING", "INTRA_OP_THREAD_COUNT", "ENABLE_WEIGHT_SHARING", "CPU_RUNTIME"}


def read_config(model: str) -> ModelConfig:
    return text_format.Parse((SOURCE / model / "config.pbtxt").read_text("utf-8"), ModelConfig())


@pytest.mark.parametrize("model", MODELS)
def test_every_config_parses_and_is_named_after_its_directory(model):
    assert read_config(model).name == model


def test_each_step_reads_what_an_earlier_one_made_in_the_same_type_and_shape():
    ensemble = read_config("classifier")
    made = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        part = read_config(step.model_name)
        inputs = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in part.input}
        outputs = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in part.output}
        assert set(step.input_map) == set(inputs)
        for name, tensor in step.input_map.items():
            assert made[tensor] == inputs[name], f"{step.model_name}.{name}"
        made.update({tensor: outputs[name] for name, tensor in step.output_map.items()})
    for tensor in ensemble.output:
        assert made[tensor.name] == (tensor.data_type, list(tensor.dims))


def test_the_steps_form_a_chain_where_each_reads_from_the_one_before():
    steps = read_config("classifier").ensemble_scheduling.step
    for before, after in itertools.pairwise(steps):
        assert set(before.output_map.values()) & set(after.input_map.values())


def test_a_tensor_has_one_name_everywhere():
    for step in read_config("classifier").ensemble_scheduling.step:
        for mapping in (step.input_map, step.output_map):
            assert all(inner == outer for inner, outer in mapping.items())


def test_the_ensemble_pins_one_version_of_itself_and_of_every_part():
    ensemble = read_config("classifier")
    pins = {step.model_version for step in ensemble.ensemble_scheduling.step}
    assert pins == set(ensemble.version_policy.specific.versions) == {1}


@pytest.mark.parametrize("model", [model for model in MODELS if model != "classifier"])
def test_a_part_loads_the_version_that_is_pinned_and_takes_the_ensembles_largest_batch(model):
    part = read_config(model)
    pinned = read_config("classifier").version_policy.specific.versions
    assert set(part.version_policy.specific.versions) == set(pinned)
    assert part.max_batch_size >= read_config("classifier").max_batch_size > 0


def test_both_inputs_of_the_public_contract_are_optional_bytes():
    inputs = read_config("classifier").input
    assert [(tensor.name, list(tensor.dims), tensor.optional) for tensor in inputs] == [
        ("image", [1], True),
        ("text", [1], True),
    ]


@pytest.mark.parametrize("model", TORCHSCRIPT)
def test_a_torchscript_config_loads_unchanged_in_the_native_backend(model):
    config = read_config(model)
    assert (config.backend, config.runtime, config.default_model_filename) == ("pytorch", "", "model.pt")
    assert set(config.parameters) == PARAMETERS
    assert not any(tensor.optional for tensor in config.input)


@pytest.mark.parametrize("model", ["preprocess", "image_encoder", "text_encoder"])
def test_a_callers_timeout_is_honoured_wherever_requests_queue(model):
    policy = read_config(model).dynamic_batching.default_queue_policy
    assert policy.default_timeout_microseconds > 0  # else an override is ignored
    assert policy.allow_timeout_override
    assert policy.max_queue_size > 0
    assert policy.timeout_action == policy.REJECT


@pytest.mark.parametrize("model", [model for model in MODELS if model != "classifier"])
def test_every_part_is_warmed_up_with_all_its_inputs_in_several_batch_sizes(model):
    config = read_config(model)
    assert len({sample.batch_size for sample in config.model_warmup}) > 1
    for sample in config.model_warmup:
        assert sample.batch_size <= config.max_batch_size
        assert set(sample.inputs) == {tensor.name for tensor in config.input}
        for value in sample.inputs.values():
            if value.input_data_file:
                assert (SOURCE / model / "warmup" / value.input_data_file).is_file()
