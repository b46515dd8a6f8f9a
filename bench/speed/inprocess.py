"""The two measurements without a server, each in processes of their own.

article  the article's prediction path: eager fp32, one item at a time, texts of 128 tokens, a thread a core
ceiling  our preprocessing and the server's graphs, in batches, one single-threaded process a core
Usage: python -m bench.speed.inprocess WHAT RUN_OR_REPOSITORY ITEMS DURATION_S BATCH_SIZE DEVICE
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from bench.peers.artefacts import Artefacts
from diptych.data.dataset import to_inputs
from diptych.runs.run import load_run
from diptych_serving.hardware import num_cores
from diptych_serving.preprocessing import Preprocessor, Row
from diptych_serving.server import children
from diptych_serving.traffic import ClosedLoop, load_items, shared

ARTICLE_TOKENS = 128
WARMUP_CALLS = 3

Items = Sequence[tuple[bytes, bytes]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InProcess:
    """Times in milliseconds; latency is that of a whole batch."""

    items_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    memory_mib: float


def run_in_processes(
    what: str,
    source: Path,
    items: Path,
    *,
    duration_s: float,
    batch_size: int,
    num_processes: int,
    device: str,
) -> InProcess:
    """Start them together, add what they did."""
    command = [sys.executable, "-m", "bench.speed.inprocess", what, str(source), str(items)]
    command += [str(duration_s), str(batch_size), device]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(children.running(command, stdout=subprocess.PIPE, text=True))
            for _ in range(num_processes)
        ]
        results = [json.loads(process.communicate()[0]) for process in started]
    num_items = sum(result["num_items"] for result in results)
    latencies_ms = np.concatenate([result["latencies_ms"] for result in results])
    p50, p95, p99 = np.percentile(latencies_ms, [50, 95, 99]).tolist()
    return InProcess(
        items_per_s=sum(result["num_items"] / result["seconds"] for result in results),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        cpu_ms=sum(result["cpu_s"] for result in results) * 1000 / num_items,
        memory_mib=sum(result["memory_mib"] for result in results),
    )


def article_path(run_directory: Path) -> Callable[[Items], None]:
    """What the article's predict function does, step for step; padding and absent images are computed."""
    torch.set_num_threads(num_cores())
    run = load_run(run_directory)
    spec = dataclasses.replace(run.preprocessor.spec, max_tokens=ARTICLE_TOKENS)
    preprocessor = Preprocessor(spec, run.preprocessor.tokenizer_json)
    image, text, head = run.model.image_encoder, run.model.text_encoder, run.model.fusion_head

    @torch.no_grad()
    def predict(items: Items) -> None:
        (row,) = preprocessor.rows(items)
        assert isinstance(row, Row)
        inputs = to_inputs([row])
        everything = torch.ones(1, dtype=torch.bool)
        image_features = image.projection(image.embed(inputs.pixel_values), everything)
        # An absent text has a mask of zeros, which attention cannot be given.
        mask = (
            inputs.attention_mask if inputs.attention_mask.any() else torch.ones_like(inputs.attention_mask)
        )
        text_features = text.projection(text.backbone(inputs.input_ids, mask), everything)
        head(image_features, text_features).argmax(1).item()

    return predict


def ceiling_path(repository: Path, device: str) -> Callable[[Items], None]:
    """The server's own steps, called directly."""
    torch.set_num_threads(1)
    artefacts = Artefacts(repository, torch.device(device))
    return lambda items: artefacts.classify(items).argmax(1).tolist() and None


def main() -> None:
    what, source, path, duration_s, batch_size, device = sys.argv[1:]
    predict = article_path(Path(source)) if what == "article" else ceiling_path(Path(source), device)
    items = [(image, text.encode()) for image, text in load_items(Path(path))]
    size = int(batch_size)
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    with ClosedLoop([shared(predict)], batches, keeps_results=False, num_calls=WARMUP_CALLS) as warm_up:
        warm_up.join()
    begin_s, cpu_s = time.monotonic(), time.process_time()
    with ClosedLoop([shared(predict)], batches, keeps_results=False) as loop:
        time.sleep(float(duration_s))
    for call in loop.calls:
        if not call.is_answered:
            raise RuntimeError(f"{what}: {call.outcome}: {call.result}")
    result = {
        "num_items": sum(len(batches[call.item]) for call in loop.calls),
        "seconds": time.monotonic() - begin_s,
        "latencies_ms": [call.latency_ms for call in loop.calls],
        "cpu_s": time.process_time() - cpu_s,
        "memory_mib": _peak_memory_mib(),
    }
    json.dump(result, sys.stdout)


def _peak_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
