"""Where the time of a single call goes: one caller, one call at a time, from Triton's own statistics.

python -m bench.single_call --repository build/model_repository            starts a server of its own

`waits` is a step's queue; `copies` is what Triton counts as input and output; `computes` is the rest, with
the messages to the step's process. `alone` is the same work in this process. The last rows are what lies
between the steps (the ensemble), and between the server and the caller (gRPC and the client). All are means.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from diptych_client import Client
from diptych_serving import openvino_runtime
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Preprocessor
from diptych_serving.progress import console
from diptych_serving.repository.layout import ENSEMBLE, FUSION_HEAD, IMAGE_ENCODER, TEXT_ENCODER
from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.signals import end_in_order

TEXT = "a drawing of a swan"
STEPS = ("preprocess", IMAGE_ENCODER, TEXT_ENCODER, FUSION_HEAD, "tally")
NUM_WARM_UP = 50
PARTS = {"waits": ("queue",), "copies": ("compute_input", "compute_output"), "computes": ("compute_infer",)}

Means = dict[str, dict[str, float]]  # step -> part -> milliseconds of a call


def main() -> int:
    options = _parse()
    end_in_order()
    image = _photo()
    torch.set_num_threads(1)
    try:
        with Server(options.repository, ServerConfig.on_free_ports()) as server:
            server.wait_until_ready()
            latency_ms, means = _call(server, image, options.calls)
        alone = _alone(options.repository, image, options.calls)
    except UserError as error:
        console.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        return 1
    console.print(_table(latency_ms, means, alone))
    graphs = sum(alone[name] for name in STEPS if name in alone)
    console.print(f"{latency_ms:.1f} ms a call, {latency_ms / graphs:.2f} of the same work in one process")
    return 0


def _call(server: Server, image: bytes, num_calls: int) -> tuple[float, Means]:
    """The mean latency for the caller, and the server's means."""
    address = f"127.0.0.1:{server.ports.grpc}"
    raw = triton.InferenceServerClient(address)
    latencies_ms = []
    with Client(f"grpc://{address}") as client:
        for number in range(NUM_WARM_UP + num_calls):
            if number == NUM_WARM_UP:
                before = _statistics(raw)
            begin_s = time.perf_counter()
            client.classify(image=image, text=TEXT)
            latencies_ms.append((time.perf_counter() - begin_s) * 1000)
    after = _statistics(raw)
    means = {
        name: {part: (after[name][part] - before[name][part]) / num_calls / 1e6 for part in after[name]}
        for name in after
    }
    return statistics.fmean(latencies_ms[NUM_WARM_UP:]), means


def _statistics(raw: triton.InferenceServerClient) -> Means:
    """Nanoseconds since the start, by model and part."""
    models = raw.get_inference_statistics(as_json=False).model_stats
    return {
        model.name: {
            "success": model.inference_stats.success.ns,
            **{
                part: sum(getattr(model.inference_stats, name).ns for name in names)
                for part, names in PARTS.items()
            },
        }
        for model in models
    }


def _alone(repository: Path, image: bytes, num_calls: int) -> dict[str, float]:
    """The mean of each step but the last in this process, milliseconds."""
    preprocessor = Preprocessor.load(repository / "preprocess/1")
    batch = preprocessor.batch([(image, TEXT.encode())])
    arrays: dict[str, NDArray[Any]] = {
        "pixel_values": batch.pixel_values,
        "image_present": batch.image_present,
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
    }
    means_ms = {"preprocess": _mean_ms(lambda: preprocessor.batch([(image, TEXT.encode())]), num_calls)}
    outputs = {IMAGE_ENCODER: "image_features", TEXT_ENCODER: "text_features", FUSION_HEAD: "probabilities"}
    for name, output in outputs.items():
        run = _load(repository / name / "1", arrays)
        arrays[output] = run()
        means_ms[name] = _mean_ms(run, num_calls)
    return means_ms


def _load(directory: Path, arrays: Mapping[str, NDArray[Any]]) -> Callable[[], NDArray[Any]]:
    """A model's graph with its inputs, as the server runs it on a CPU."""
    file, compared = directory / "model.pt", directory / openvino_runtime.VERSION_FILE
    module = torch.jit.load(file, map_location="cpu").eval()
    names = [argument.name for argument in module.forward.schema.arguments[1:]]
    if compared.is_file():
        inputs = [
            {"name": n, "data_type": _triton_type(arrays[n]), "dims": arrays[n].shape[1:]} for n in names
        ]
        precision = json.loads(compared.read_text("utf-8"))["precision"]
        graph = openvino_runtime.load_graph(file, inputs, read_module=lambda _: module, precision=precision)
        return lambda: graph(*(arrays[name] for name in graph.inputs))[0]
    tensors = [torch.from_numpy(arrays[name]) for name in names]

    def run() -> NDArray[Any]:
        with torch.inference_mode():
            result: NDArray[Any] = module(*tensors).float().numpy()
            return result

    return run


def _triton_type(array: NDArray[Any]) -> str:
    return "TYPE_" + array.dtype.name.upper().replace("FLOAT", "FP")


def _mean_ms(call: Callable[[], object], num_calls: int) -> float:
    latencies_ms = []
    for _ in range(NUM_WARM_UP + num_calls):
        begin_s = time.perf_counter()
        call()
        latencies_ms.append((time.perf_counter() - begin_s) * 1000)
    return statistics.fmean(latencies_ms[NUM_WARM_UP:])


def _table(latency_ms: float, means: Means, alone: Mapping[str, float]) -> Table:
    table = Table(title="A single call, milliseconds")
    for column in ("", *PARTS, "sum", "alone"):
        table.add_column(column, justify="right" if column else "left")
    for step in STEPS:
        parts = [means[step][part] for part in PARTS]
        table.add_row(
            step,
            *(f"{each:.2f}" for each in (*parts, means[step]["success"])),
            f"{alone[step]:.2f}" if step in alone else "",
        )
    between = means[ENSEMBLE]["success"] - sum(means[step]["success"] for step in STEPS)
    table.add_row("the ensemble", *[""] * 3, f"{between:.2f}", "")
    table.add_row("gRPC and the client", *[""] * 3, f"{latency_ms - means[ENSEMBLE]['success']:.2f}", "")
    return table


def _photo() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.single_call", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, required=True, help="what diptych export wrote, for a CPU")
    parser.add_argument("--calls", type=int, default=300, help="default 300")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
