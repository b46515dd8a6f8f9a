"""Graphs of fewer bits: what they compute in, when they are refused; and no graph computes for nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from diptych.data.dataset import to_inputs
from diptych.export.export import export
from diptych.export.precision import FP32, Numbers, Precision, choose_precision
from diptych.export.torchscript import run_parts, to_torchscript
from diptych.models.classifier import Inputs
from diptych.runs.run import Run
from diptych_serving.errors import UserError
from diptych_serving.hardware import has_bf16_instructions
from diptych_serving.preprocessing import Row
from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.gpu import has_gpu
from tests.helpers.catalogues import make_catalogue
from tests.helpers.tiny_repository import load_script

LEAN = [
    Precision(image="bf16", text="bf16"),
    Precision(image="fp16", text="fp16"),
    Precision(image="fp32", text="int8"),
]


class FailsIn16Bits(nn.Module):
    """A backbone that rounding leads astray: its embeddings change sign."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, *inputs: Tensor) -> Tensor:
        embeddings = self.backbone(*inputs)
        return embeddings if embeddings.dtype == torch.float32 else -embeddings


@pytest.fixture
def batch(tiny_run: Run, tmp_path: Path) -> Inputs:
    """Nine rows: all have words, of several lengths."""
    pictures = sorted(make_catalogue(tmp_path / "items", 9).parent.glob("*.png"))
    texts = [b"a leaf" + b" and a garden" * (index % 3) for index in range(len(pictures))]
    items = [(picture.read_bytes(), text) for picture, text in zip(pictures, texts, strict=True)]
    rows = tiny_run.preprocessor.rows(items)
    return to_inputs([row for row in rows if isinstance(row, Row)])


@pytest.mark.parametrize("precision", LEAN, ids=str)
def test_a_graph_of_fewer_bits_answers_nearly_as_the_fp32_one_between_the_same_borders(
    tiny_run: Run, tmp_path: Path, batch: Inputs, precision: Precision
) -> None:
    repository = tmp_path / "model_repository"
    _, gated = export(tiny_run, repository, precision)
    assert gated.precision == precision
    parts = {
        name: load_script(repository / name / "1/model.pt")
        for name in ("image_encoder", "text_encoder", "fusion_head")
    }
    features = parts["image_encoder"](batch.pixel_values, batch.image_present.unsqueeze(1))
    assert (batch.pixel_values.dtype, features.dtype) == (torch.uint8, torch.float32)
    exact = run_parts(to_torchscript(tiny_run.model, batch), batch)
    found = run_parts(parts, batch)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.05

    manifest = json.loads((repository / "classifier/1/manifest.json").read_text())
    assert manifest["precision"] == {"image_encoder": precision.image, "text_encoder": precision.text}
    assert [result["precision"] for result in manifest["parity"]] == ["fp32"]
    (judgement,) = manifest["judgements"]
    assert judgement["precision"] == str(precision)
    assert judgement["num_labelled"] == 36  # the whole validation table
    assert judgement["label_agreement"] >= 0.97


def test_a_backbone_that_loses_accuracy_in_16_bits_stays_in_fp32_and_export_says_so(
    tiny_run: Run, tmp_path: Path
) -> None:
    model = copy.deepcopy(tiny_run.model)
    model.image_encoder.backbone = FailsIn16Bits(model.image_encoder.backbone)
    run = dataclasses.replace(tiny_run, model=model)
    _, gated = export(run, tmp_path / "first", Precision(image="bf16", text="bf16"))
    assert (gated.precision.image, gated.precision.text) == ("fp32", "bf16")
    assert re.match(r"bf16: .*log loss may rise by", gated.precision.note)

    model.text_encoder.backbone.head = FailsIn16Bits(model.text_encoder.backbone.head)
    _, gated = export(run, tmp_path / "second", Precision(image="bf16", text="bf16"))
    assert (gated.precision.image, gated.precision.text) == ("fp32", "fp32")
    assert re.search(r"fp32 image, bf16 text: .*; fp32 instead$", gated.precision.note)
    assert gated.parity[-1].max_difference <= 1e-5


@pytest.mark.parametrize("request_", ["auto", "bf16", "fp16"])
def test_a_cpu_gets_16_bits_only_where_it_computes_in_them(request_: str) -> None:
    found = choose_precision(request_, "cpu")
    expected: Numbers = "bf16" if has_bf16_instructions() else "fp32"
    assert (found.image, found.text) == (expected, expected)
    assert bool(found.note) == ((expected == "fp32" and request_ != "auto") or request_ == "fp16")


@pytest.mark.parametrize(
    ("request_", "target", "numbers"),
    [("auto", "gpu", "fp16"), ("bf16", "gpu", "bf16"), ("fp32", "cpu", "fp32")],
)
def test_what_is_asked_for_is_given_where_nothing_stands_against_it(
    request_: str, target: str, numbers: str
) -> None:
    assert str(choose_precision(request_, target)) == numbers


@pytest.mark.parametrize(
    ("request_", "target", "message"),
    [
        ("int4", "cpu", "--precision int4: expected one of auto, fp32, bf16, fp16, int8"),
        ("auto", "tpu", "--target tpu: expected one of cpu, gpu"),
        ("int8", "gpu", "--precision int8: PyTorch's quantised layers run on CPUs only; use --target cpu"),
    ],
)
def test_what_cannot_be_exported_is_refused(request_: str, target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_precision(request_, target)


@pytest.mark.skipif(has_gpu(), reason="this machine computes in fp16 itself: its NVIDIA GPU does")
def test_a_repository_for_other_hardware_is_not_served(tiny_run: Run, tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    export(tiny_run, repository, choose_precision("auto", "gpu"))
    with (
        pytest.raises(
            UserError,
            match=r"image_encoder computes in fp16, and this machine has no NVIDIA GPU to use: .*fp32",
        ),
        Server(repository, ServerConfig.on_free_ports()),
    ):
        pass


def test_rows_without_a_picture_or_words_and_padding_are_not_computed(tiny_run: Run, batch: Inputs) -> None:
    present = torch.arange(9) % 3 == 0
    parts = to_torchscript(tiny_run.model, batch)
    shown = batch.keep(image=present, text=~present)
    longest = int(shown.attention_mask.sum(1).max())
    assert longest < shown.input_ids.size(1)
    assert batch_sizes_of(parts, shown, "aten::_convolution") == {3}
    assert shapes_of(parts, shown, "aten::embedding", argument=1) >= {(6, longest)}

    nothing = batch.keep(image=present & False, text=present & False)
    # One row and one token, and not none: tests/e2e/test_runtime.py says what OpenVINO does with zero rows.
    assert batch_sizes_of(parts, nothing, "aten::_convolution") == {1}
    assert shapes_of(parts, nothing, "aten::embedding", argument=1) >= {(1, 1)}


def batch_sizes_of(parts: dict[str, torch.jit.ScriptModule], batch: Inputs, operator: str) -> set[int]:
    return {shape[0] for shape in shapes_of(parts, batch, operator)}


def shapes_of(
    parts: dict[str, torch.jit.ScriptModule], batch: Inputs, operator: str, argument: int = 0
) -> set[tuple[int, ...]]:
    """The shapes of one argument in all calls of an operator."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as profiler:
        run_parts(parts, batch)
    return {tuple(event.input_shapes[argument]) for event in profiler.events() if event.name == operator}


def test_batch_norms_are_folded_and_nothing_is_left_to_train(tiny_run: Run, batch: Inputs) -> None:
    parts = to_torchscript(tiny_run.model, batch, FP32)
    assert "aten::batch_norm" not in str(parts["image_encoder"].inlined_graph)
    assert list(parts["image_encoder"].parameters()) == []
