"""A plain FastAPI service: one process, one item a request, PyTorch's defaults.

Usage: python -m bench.peers.fastapi_app REPOSITORY_OR_RUN PORT [DEVICE]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import uvicorn
from fastapi import FastAPI, File, Form

from bench.peers.artefacts import Artefacts, Eager, open_model


def make_app(model: Artefacts | Eager) -> FastAPI:
    """POST /predict with a form of `image` (a file) and `text`."""
    app = FastAPI()

    @app.post("/predict")
    def predict(image: Annotated[bytes, File()] = b"", text: Annotated[str, Form()] = "") -> dict[str, float]:
        (probabilities,) = model.classify([(image, text.encode())]).tolist()
        return dict(zip(model.labels, probabilities, strict=True))

    return app


def main() -> None:
    directory, port, *device = sys.argv[1:]
    model = open_model(Path(directory), torch.device(*device or ["cpu"]))
    uvicorn.run(make_app(model), host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
