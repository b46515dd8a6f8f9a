"""One item through a run's own model, in process."""

from __future__ import annotations

import torch

from diptych.dataset import to_inputs
from diptych.errors import UserError
from diptych.preprocessing import InvalidInput
from diptych.run import Run


@torch.inference_mode()
def predict(run: Run, image: bytes, text: str) -> dict[str, float]:
    """Calibrated probabilities by label, the most likely first.

    image  one encoded image file; empty: no image
    text   empty: no text
    """
    (row,) = run.preprocessor.rows([(image, text.encode())])
    if isinstance(row, InvalidInput):
        raise UserError(str(row))
    logits = run.model.eval()(to_inputs([row]))[0]
    probabilities = torch.softmax(logits / run.model.fusion_head.temperature, dim=0).tolist()
    return dict(sorted(zip(run.labels, probabilities, strict=True), key=lambda pair: -pair[1]))
