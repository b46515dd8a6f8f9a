"""Where the time of a single call goes: one caller, one call at a time, from Triton's own statistics.

python -m bench.single_call --repository build/model_repository            starts a server of its own

`waits` is a step's queue; `copies` is what Triton counts as input and output; `computes` is the rest, with
the messages to the step's process. `alone` is the same work in this process. The last rows are what lies
between the steps (the ensemble), and between the server and the caller (gRPC and the client). All are means.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc as triton
from PIL import Image
from rich.table import Table

from bench.peers.artefacts import Artefacts
from diptych_client import Client
from diptych_serving.errors import UserError
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
    """The mean of each step but the last in this process, milliseconds.

    The steps run in turn, so that each finds the processor's caches as the step before left them.
    """
    artefacts = Artefacts(repository)
    image_encoder, text_encoder, fusion_head = (artefacts.parts[name] for name in STEPS[1:4])
    moments_ms = []
    with torch.inference_mode():
        for _ in range(NUM_WARM_UP + num_calls):
            moments_ms.append([_now_ms()])
            batch = artefacts.preprocessor.batch([(image, TEXT.encode())])
            moments_ms[-1].append(_now_ms())
            image_features = image_encoder(
                torch.from_numpy(batch.pixel_values), torch.from_numpy(batch.image_present)
            )
            moments_ms[-1].append(_now_ms())
            tokens = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
            text_features = text_encoder(*tokens, image_features)
            moments_ms[-1].append(_now_ms())
            fusion_head(image_features, text_features)
            moments_ms[-1].append(_now_ms())
    means_ms = np.diff(moments_ms[NUM_WARM_UP:], axis=1).mean(axis=0)
    return dict(zip(STEPS[:4], means_ms.tolist(), strict=True))


def _now_ms() -> float:
    return time.perf_counter() * 1000


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
