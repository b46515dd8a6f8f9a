"""What an item costs in each runtime: TorchScript and OpenVINO, in fp32 and bf16, on one thread.

Counts CPU time and goes through the runtimes in turn, so that other work on the machine disturbs all alike.

    python -m bench.runtimes runs/quickstart
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from diptych.data.dataset import to_inputs
from diptych.data.examples import read_examples
from diptych.export import parity
from diptych.export.gate import openvino_parts
from diptych.export.precision import FP32, Precision
from diptych.export.torchscript import save_parts, to_torchscript
from diptych.runs.run import load_run
from diptych_serving.release.in_process import load_parts
from diptych_serving.repository.layout import IMAGE_ENCODER, TEXT_ENCODER, TORCHSCRIPT

BF16 = Precision(image="bf16", text="bf16")
ROWS = 4
Step = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
        steps = load_steps(options.run, Path(directory))
        first = {name: cpu_ms(step, 1) for name, step in steps.items()}
        new_shapes = {name: [cpu_ms(step, rows) for rows in range(2, 9)] for name, step in steps.items()}
        batches: dict[str, list[float]] = {name: [] for name in steps}
        singles: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.rounds):
            for name, step in steps.items():
                batches[name].append(cpu_ms(step, ROWS) / ROWS)
                singles[name] += [cpu_ms(step, 1) for _ in range(4)]
    table = Table(title="CPU milliseconds on one thread")
    for heading in ("", f"an item of {ROWS}", "one item p50", "p99", "first call", "worst new batch size"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in steps:
        p50, p99 = np.quantile(singles[name], [0.5, 0.99])
        figures = (np.median(batches[name]), p50, p99, first[name], max(new_shapes[name]))
        table.add_row(name, *(f"{figure:.1f}" for figure in figures))
    Console(width=110).print(table)


def load_steps(directory: Path, temporary: Path) -> dict[str, Step]:
    """A function of the number of rows for each encoder in each runtime and precision."""
    run = load_run(directory)
    rows = parity.sample_rows(read_examples(run.directory) or [], run.preprocessor)["both"]
    example = to_inputs(rows)
    loaded = {}
    for precision in (FP32, BF16):
        directories = _version_directories(temporary / str(precision))
        save_parts(to_torchscript(run.model.eval(), example, precision), directories)
        loaded[f"TorchScript {precision}"] = load_parts(directories)
    fp32 = _version_directories(temporary / str(FP32))
    for precision in (FP32, BF16):
        loaded[f"OpenVINO {precision}"] = openvino_parts(fp32, precision, num_threads=1)

    features = torch.zeros(len(rows), 512)
    inputs = {
        IMAGE_ENCODER: (example.pixel_values, example.image_present.unsqueeze(1)),
        TEXT_ENCODER: (example.input_ids, example.attention_mask, features),
    }
    return {
        f"{encoder}, {name}": _step(parts[encoder], tensors)
        for encoder, tensors in inputs.items()
        for name, parts in loaded.items()
    }


def _step(part: Callable[..., object], tensors: Sequence[torch.Tensor]) -> Step:
    def run(num_rows: int) -> object:
        chosen = torch.arange(num_rows) % len(tensors[0])
        return part(*(tensor[chosen] for tensor in tensors))

    return run


def cpu_ms(step: Step, num_rows: int) -> float:
    start_s = time.process_time()
    step(num_rows)
    return 1e3 * (time.process_time() - start_s)


def _version_directories(root: Path) -> dict[str, Path]:
    """As in a repository, with the configs that say the inputs."""
    source = Path(__file__).parents[1] / "model_repository"
    directories = {model: root / model / "1" for model in TORCHSCRIPT}
    for model, directory in directories.items():
        directory.mkdir(parents=True, exist_ok=True)
        config = directory.parent / "config.pbtxt"
        config.write_text((source / model / "config.pbtxt").read_text("utf-8"), "utf-8")
    return directories


if __name__ == "__main__":
    main()
