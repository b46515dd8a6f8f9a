"""The operations of a running server that a release needs: load models, call one version of the steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from diptych_client import InvalidInput, Tls
from diptych_serving.errors import UserError
from diptych_serving.release.undo import Unreachable
from diptych_serving.repository.layout import ENSEMBLE, STEPS
from diptych_serving.repository.tuned_copy import DIRECTORY as TUNED_COPY
from diptych_serving.repository.tuned_copy import update_copy
from diptych_serving.server.admin_key import find_admin_key, find_workspace

LOAD_TIMEOUT_S = 600.0
ANSWER_TIMEOUT_S = 60.0


class Refused(UserError):
    """The server refused, and repeating the request does not help: for an item, that it is unusable."""


KINDS: dict[str, type[UserError]] = {
    "StatusCode.INVALID_ARGUMENT": Refused,
    "StatusCode.UNAVAILABLE": Unreachable,
    "StatusCode.DEADLINE_EXCEEDED": Unreachable,
}


class Control:
    """A connection to the administrative API over gRPC. Threads may share it.

    url      grpc://HOST:PORT, or grpcs:// for TLS
    headers  such as the key of a restricted API; None: the key of this user's own server, if any
    tls      authority and client certificate, for grpcs:// only
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, tls: Tls | None = None) -> None:
        scheme, _, address = url.partition("://")
        if scheme not in ("grpc", "grpcs") or not address:
            raise UserError(
                f"--server {url}: expected grpc://HOST:PORT, such as grpc://127.0.0.1:8001, or grpcs://"
            )
        self.url = url
        if headers is None and (key := find_admin_key(address)):
            headers = key.grpc_headers
        self._tuned_copy = _find_tuned_copy(address)
        self._headers = dict(headers or {})
        try:
            credentials = (tls or Tls()).grpc_credentials() if scheme == "grpcs" else None
        except InvalidInput as error:
            raise UserError(f"--server {url}: {error}") from None
        self._client = triton.InferenceServerClient(address, ssl=scheme == "grpcs", creds=credentials)

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def load(self, model: str) -> None:
        """Load a model as its config on disk says. The loaded version serves until the new one is ready."""
        if self._tuned_copy:
            update_copy(self._tuned_copy)
        self._call("load_model", model, client_timeout=LOAD_TIMEOUT_S)

    def loaded(self) -> set[tuple[str, int]]:
        """(model, version) pairs that are ready."""
        index = self._call("get_model_repository_index", client_timeout=ANSWER_TIMEOUT_S)
        return {(model.name, int(model.version)) for model in index.models if model.state == "READY"}

    def serving_version(self) -> int | None:
        """The ensemble's version that answers now; None if there is none."""
        versions = [version for model, version in self.loaded() if model == ENSEMBLE]
        return versions[0] if len(versions) == 1 else None

    def loaded_versions(self) -> set[int]:
        """The versions of which any step, or the ensemble, is loaded."""
        return {version for model, version in self.loaded() if model in (ENSEMBLE, *STEPS)}

    def ask_ensemble(self, version: int, image: bytes, text: bytes) -> NDArray[np.float32]:
        """Probabilities (C,) float32 of one item, through the ensemble. Raises Refused."""
        inputs = {name: _bytes_tensor(value) for name, value in (("image", image), ("text", text))}
        probabilities: NDArray[np.float32] = self._infer(ENSEMBLE, version, inputs)["probabilities"][0]
        return probabilities

    def ask(self, version: int, image: bytes, text: bytes) -> NDArray[np.float32]:
        """Probabilities (C,) float32 of one item from one version, step by step, without the ensemble.

        raises  Refused if the version does not answer the item
        """
        tensors = {name: _bytes_tensor(value) for name, value in (("image", image), ("text", text))}
        inputs = {
            "preprocess": ("image", "text"),
            "image_encoder": ("pixel_values", "image_present"),
            "text_encoder": ("input_ids", "attention_mask", "image_features"),
            "fusion_head": ("image_features", "text_features"),
            "tally": ("fused_probabilities",),
        }
        for step in STEPS:
            tensors |= self._infer(step, version, {name: tensors[name] for name in inputs[step]})
        probabilities: NDArray[np.float32] = tensors["probabilities"][0]
        return probabilities

    def _infer(
        self, model: str, version: int, tensors: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        inputs = []
        for name, tensor in tensors.items():
            inputs.append(triton.InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype)))
            inputs[-1].set_data_from_numpy(tensor)
        answer = self._call(
            "infer", model, inputs, model_version=str(version), client_timeout=ANSWER_TIMEOUT_S
        )
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._client, method)(*arguments, headers=self._headers, **options)
        except InferenceServerException as error:
            kind = KINDS.get(error.status(), UserError)
            raise kind(
                f"{self.url}: {method} {arguments[0] if arguments else ''}: {error.message()}"
            ) from None


def _find_tuned_copy(address: str) -> Path | None:
    """The copy of the repository that a server started with `--tuning` reads."""
    workspace = find_workspace(address)
    copy = workspace / TUNED_COPY if workspace else None
    return copy if copy and copy.is_dir() else None


def _bytes_tensor(value: bytes) -> NDArray[np.object_]:
    return np.array([[value]], dtype=np.object_)
