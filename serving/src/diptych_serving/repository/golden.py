"""Golden requests: recorded with their answers at export, sent to a server before a version serves."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych_serving.errors import UserError

GOLDEN_FILE = "golden.json"
NUM_ITEMS = 8
# Processors round differently. This is more than the parity check allows, and less than other weights differ.
MAX_DIFFERENCE_EXACT, MAX_DIFFERENCE_LEAN = 1e-3, 0.05

Ask = Callable[[bytes, bytes], NDArray[np.float32]]


def record(path: Path, items: Sequence[tuple[bytes, bytes]], ask: Ask, *, max_difference: float) -> None:
    """Write requests and the answers of `ask`, with items of every kind.

    items           (image file, UTF-8 text) pairs with both; the first few also with one modality alone
    max_difference  how far a server's probability may be from the recorded one
    """
    requests = [
        pair for image, text in items[:NUM_ITEMS] for pair in ((image, text), (image, b""), (b"", text))
    ]
    golden = {
        "max_difference": max_difference,
        "requests": [
            {
                "image": base64.b64encode(image).decode(),
                "text": text.decode(),
                "probabilities": [round(float(value), 7) for value in ask(image, text)],
            }
            for image, text in requests
        ],
    }
    path.write_text(json.dumps(golden) + "\n", "utf-8")


def replay(path: Path, ask: Ask) -> float:
    """Send all of them again. Returns the largest difference of a probability.

    raises  UserError if it is above the limit
    """
    golden = json.loads(path.read_text("utf-8"))
    largest = 0.0
    for request in golden["requests"]:
        expected = np.array(request["probabilities"], dtype=np.float32)
        found = ask(base64.b64decode(request["image"]), request["text"].encode())
        if found.shape != expected.shape:
            raise UserError(f"{path}: {found.size} probabilities were answered, {expected.size} are expected")
        difference = float(np.abs(found - expected).max())
        if not difference <= golden["max_difference"]:  # a NaN fails too
            raise UserError(
                f"{path}: the answer to {request['text'] or 'an image alone'!r} differs by "
                f"{difference:.4f} in a probability from the one recorded at export; "
                f"at most {golden['max_difference']} is accepted"
            )
        largest = max(largest, difference)
    return largest
