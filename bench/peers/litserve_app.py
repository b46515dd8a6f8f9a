"""LitServe with its dynamic batching, set up as its documentation advises: one worker a core, batches of 16.

Usage: python -m bench.peers.litserve_app REPOSITORY_OR_RUN PORT [DEVICE]
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

import litserve
import torch

from bench.peers.artefacts import open_model

MAX_BATCH_SIZE = 16
BATCH_TIMEOUT_S = 0.005


class ClassifierApi(litserve.LitAPI):
    """POST /predict with JSON: `image` in base64, `text`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
        self._directory = directory

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)  # a worker is a process, and there is one for each core
        self._model = open_model(self._directory, torch.device(device))

    def decode_request(self, request: dict[str, str]) -> tuple[bytes, bytes]:
        return base64.b64decode(request["image"]), request["text"].encode()

    def batch(self, inputs: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        return inputs

    def predict(self, items: list[tuple[bytes, bytes]]) -> list[list[float]]:
        return self._model.classify(items).tolist()

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        return dict(zip(self._model.labels, output, strict=True))


def main() -> None:
    directory, port, *device = sys.argv[1:]
    on_cpu = not device or device[0] == "cpu"
    server = litserve.LitServer(
        ClassifierApi(Path(directory)),
        accelerator="cpu" if on_cpu else "cuda",
        workers_per_device=len(os.sched_getaffinity(0)) if on_cpu else 1,
    )
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
