"""A plain FastAPI service: one process, one item a request, PyTorch's defaults.

Usage: python -m bench.peers.fastapi_app REPOSITORY PORT [DEVICE]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import uvicorn
from fastapi import FastAPI, File, Form

from bench.peers.artefacts import Artefacts


def make_app(artefacts: Artefacts) -> FastAPI:
    """POST /predict with a form of `image` (a file) and `text`."""
    app = FastAPI()

    @app.post("/predict")
    def predict(image: Annotated[bytes, File()] = b"", text: Annotated[str, Form()] = "") -> dict[str, float]:
        (probabilities,) = artefacts.classify([(image, text.encode())]).tolist()
        return dict(zip(artefacts.labels, probabilities, strict=True))

    return app


def main() -> None:
    repository, port, *device = sys.argv[1:]
    artefacts = Artefacts(Path(repository), torch.device(*device or ["cpu"]))
    uvicorn.run(make_app(artefacts), host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
