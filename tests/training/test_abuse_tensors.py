"""The exported graphs answer any tensor of a valid shape: in a native server a row that raised would fail the
batch that it shares with others."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.export.torchscript import without_debug_records
from tests.helpers.hostile_tensors import Tensors, of_equal_shape, of_other_shapes
from tests.helpers.tiny_repository import load_script, torchscript_without_warnings

SIZE_PX, MAX_TOKENS = 64, 24  # of the tiny config
ARGUMENTS = {
    "image_encoder": ("pixel_values", "image_present"),
    "text_encoder": ("input_ids", "attention_mask", "image_features"),
    "fusion_head": ("image_features", "text_features"),
}
EQUAL = [
    pytest.param(step, tensors, id=f"{step}, {name}")
    for step, cases in of_equal_shape(SIZE_PX, MAX_TOKENS).items()
    for name, tensors in cases.items()
]
OTHER = [
    pytest.param(step, tensors, id=f"{step}, {name}")
    for step, cases in of_other_shapes().items()
    for name, tensors in cases.items()
]


def good(step: str) -> list[Tensor]:
    """Three rows such as the server gets them."""
    torch.manual_seed(0)
    present = torch.tensor([[True], [False], [True]])
    lengths = torch.tensor([[5], [0], [MAX_TOKENS]])
    tensors = {
        "pixel_values": torch.randint(0, 256, (3, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8),
        "image_present": present,
        "input_ids": torch.randint(4, 20, (3, MAX_TOKENS)),
        "attention_mask": (torch.arange(MAX_TOKENS) < lengths).long(),
        "image_features": torch.randn(3, 512),
        "text_features": torch.randn(3, 512),
    }
    return [tensors[name] for name in ARGUMENTS[step]]


def rows_of(step: str, tensors: Tensors) -> list[Tensor]:
    return [torch.from_numpy(tensors[name]) for name in ARGUMENTS[step]]


@pytest.fixture(scope="module")
def parts(exported_repository: Path) -> dict[str, torch.jit.ScriptModule]:
    return {step: load_script(exported_repository / step / "1/model.pt") for step in ARGUMENTS}


@pytest.mark.parametrize(("step", "tensors"), EQUAL)
@torch.inference_mode()
def test_a_hostile_row_changes_no_other_in_its_batch(
    parts: dict[str, torch.jit.ScriptModule], step: str, tensors: Tensors
) -> None:
    expected = parts[step](*good(step))
    batch = [
        torch.cat([row, rows, row]) for row, rows in zip(rows_of(step, tensors), good(step), strict=True)
    ]
    found = parts[step](*batch)
    assert len(found) == 5
    torch.testing.assert_close(found[1:4], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("step", "tensors"), OTHER)
@torch.inference_mode()
def test_a_row_of_a_shape_that_nobody_sends_gets_an_answer(
    parts: dict[str, torch.jit.ScriptModule], step: str, tensors: Tensors
) -> None:
    assert parts[step](*rows_of(step, tensors)).shape == (1, 512)


@torch.inference_mode()
def test_padding_in_front_hides_no_token(parts: dict[str, torch.jit.ScriptModule]) -> None:
    """The mask decides which tokens count, wherever they stand."""
    tensors = of_equal_shape(SIZE_PX, MAX_TOKENS)["text_encoder"]["padding before the text"]
    assert parts["text_encoder"](*rows_of("text_encoder", tensors)).isfinite().all()


@pytest.mark.parametrize("step", ARGUMENTS)
def test_a_file_says_nothing_of_the_machine_that_exported_it(exported_repository: Path, step: str) -> None:
    with zipfile.ZipFile(exported_repository / step / "1/model.pt") as archive:
        names = archive.namelist()
        texts = [archive.read(name) for name in names if "constants/" not in name]
    assert not [name for name in names if name.endswith(".debug_pkl")]
    assert any(name.endswith(".py") for name in names)
    assert not [text for text in texts if re.search(rb"site-packages|/lib/python|\.py\(\d+\)", text)]


def test_what_is_left_of_a_file_computes_the_same_and_fails_in_few_words() -> None:
    class Divides(torch.nn.Module):
        def forward(self, rows: Tensor, index: Tensor) -> Tensor:
            return rows.index_select(0, index) / 3

    with torchscript_without_warnings():
        module = torch.jit.script(Divides())
        content = module.save_to_buffer()
        stripped = torch.jit.load(io.BytesIO(without_debug_records(content)))
    rows = torch.arange(6.0)
    assert stripped(rows, torch.tensor([2])).equal(module(rows, torch.tensor([2])))
    with pytest.raises(RuntimeError, match="index out of range") as whole:
        module(rows, torch.tensor([9]))
    with pytest.raises(RuntimeError, match="index out of range") as short:
        stripped(rows, torch.tensor([9]))
    assert __file__ in str(whole.value)
    assert __file__ not in str(short.value)
