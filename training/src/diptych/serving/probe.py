"""Asks a server one real question. Health URLs say 200 even where a model's process is dead."""

from __future__ import annotations

import http.client
import json

from diptych.errors import UserError
from diptych.release.repository import ENSEMBLE

TIMEOUT_S = 30.0

QUESTION = json.dumps(
    {
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [""]},
            {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["ready?"]},
        ]
    }
)


def is_answering(host: str, port: int) -> bool:
    """Whether the ensemble answers; False while nothing listens. Raises UserError where it refuses."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)  # unlike urllib, past any proxy
    try:
        connection.request("POST", f"/v2/models/{ENSEMBLE}/infer", QUESTION)
        response = connection.getresponse()
        body = response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    if response.status == http.client.OK:
        return True
    if response.status == http.client.SERVICE_UNAVAILABLE:
        return False
    raise UserError(f"the models are loaded but do not answer: HTTP {response.status}: {body}")
