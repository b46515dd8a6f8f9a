"""The classifier in the caller's process, for tests and notebooks without a server.

It runs the same files as the server: the preprocessing snapshot and the TorchScript files of the serving
version. These files are code. Their checksums are compared with the version's manifest before execution,
which finds damage but not an attacker who can write both, so open only repositories that you would serve.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
import types
import warnings
from pathlib import Path
from typing import Any

from diptych_client._answer import (
    ALL_CLASSES,
    IMAGE,
    MODEL,
    TEXT,
    Reply,
    Request,
    ServerInfo,
    pack_bytes,
)
from diptych_client._environment import needs_extra
from diptych_client._errors import DiptychError, InvalidInput, ServerFault, error_from_grpc
from diptych_client._retries import Deadline
from diptych_client._transports._base import Attempt

ACCEPTED = "a model repository that `diptych export` wrote"
IDENTITY_DIGITS = 16  # as model_repository/tally/model.py has it
# One is the snapshot below, the other counts for a server's dashboards and changes nothing.
PYTHON_STEPS = ("preprocess", "tally")
SPEC, TOKENIZER = "preprocessing.json", "tokenizer.json"
SNAPSHOT = ("image_files", "preprocessing")  # the second imports the first


class LocalTransport:
    """Answers like the server (1e-5 in fp32, 4e-3 in bf16). Safe to share between threads."""

    def __init__(self, path: str) -> None:
        """Load the served version. Raises InvalidInput if it is not a repository, and MissingExtra."""
        with needs_extra("local"):
            import tokenizers  # noqa: F401  (the preprocessing snapshot imports it)
            import torch
        self._torch = torch

        release = _Release(Path(path))
        self._version = str(release.version)
        labels = release.read_part(MODEL, "labels.txt")
        # Only a line feed ends a label; str.splitlines also splits at others.
        self._labels = labels.decode("utf-8").removesuffix("\n").split("\n")
        self._labels_identity = hashlib.sha256(labels).hexdigest()[:IDENTITY_DIGITS]
        self._snapshot = _import_snapshot(release)
        self._preprocessor = self._snapshot.Preprocessor(
            self._snapshot.PreprocessingSpec.from_json(release.read_part("preprocess", SPEC).decode("utf-8")),
            release.read_part("preprocess", TOKENIZER).decode("utf-8"),
        )
        self._steps = [_Step(step, release) for step in release.steps if step.model_name not in PYTHON_STEPS]

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        deadline = attempt.deadline
        deadline.remaining_s(request.request_id)
        try:
            probabilities = self._probabilities(request, deadline)
        except DiptychError:
            raise
        except Exception as error:  # the caller's process, but the model's fault
            raise ServerFault(f"local: {type(error).__name__}: {error}", request.request_id) from error
        shape = (1, len(probabilities))
        if request.wants_labels:
            strings = _classification(probabilities, self._labels)[:ALL_CLASSES]
            return self._reply(request, "BYTES", shape, b"".join(map(pack_bytes, strings)))
        return self._reply(request, "FP32", shape, struct.pack(f"<{len(probabilities)}f", *probabilities))

    def describe(self, attempt: Attempt) -> ServerInfo:
        return ServerInfo("local", self._torch.__version__, (self._version,), is_ready=True)

    def close(self) -> None:
        """Nothing is held open."""

    def abandon(self) -> None:
        """Nothing is shared with another process."""

    def _reply(self, request: Request, datatype: str, shape: tuple[int, ...], data: bytes) -> Reply:
        return Reply(request.request_id, self._version, self._labels_identity, datatype, shape, data)

    def _probabilities(self, request: Request, deadline: Deadline) -> list[float]:
        torch = self._torch
        (row,) = self._preprocessor.rows([(request.image, request.text)])
        if isinstance(row, self._snapshot.InvalidInput):
            raise error_from_grpc("INVALID_ARGUMENT", str(row), request.request_id)
        tensors = {
            "pixel_values": torch.from_numpy(row.pixel_values[None]),
            "image_present": torch.tensor([[row.image_present]]),
            "input_ids": torch.from_numpy(row.input_ids[None]),
            "attention_mask": torch.from_numpy(row.attention_mask[None]),
        }
        with torch.inference_mode():
            for step in self._steps:
                deadline.remaining_s(request.request_id)
                tensors[step.output] = step.module(*(tensors[name] for name in step.inputs))
        probabilities: list[float] = tensors[self._steps[-1].output][0].tolist()
        return probabilities


class _Release:
    """The version that the ensemble serves: its steps, and its files after their checksums were compared."""

    def __init__(self, repository: Path) -> None:
        from google.protobuf import text_format  # type: ignore[import-untyped,unused-ignore]
        from tritonclient.grpc import model_config_pb2

        self._repository = repository
        try:
            config = text_format.Parse(
                self._read_text(f"{MODEL}/config.pbtxt"), model_config_pb2.ModelConfig()
            )
        except text_format.ParseError as error:
            raise InvalidInput.refusing(
                "url", f"{repository}/{MODEL}/config.pbtxt: {error}", ACCEPTED
            ) from None
        self.steps = list(config.ensemble_scheduling.step)
        versions = {step.model_version for step in self.steps} | set(config.version_policy.specific.versions)
        inputs = {tensor.name for tensor in config.input}
        if len(versions) != 1 or min(versions) < 1 or inputs != {IMAGE, TEXT}:
            found = f"{repository}/{MODEL}, which pins versions {sorted(versions)} and takes {sorted(inputs)}"
            raise InvalidInput.refusing("url", found, ACCEPTED)
        (self.version,) = versions
        manifest = f"{MODEL}/{self.version}/manifest.json"
        try:
            self._checksums: dict[str, str] = json.loads(self._read_text(manifest))["sha256"]
        except (ValueError, LookupError, TypeError):
            raise InvalidInput.refusing("url", f"no checksums in {repository}/{manifest}", ACCEPTED) from None

    def read_part(self, model: str, file: str) -> bytes:
        return self.read(f"{model}/{self.version}/{file}")

    def read(self, file: str) -> bytes:
        """A file's content, so that exactly the checked bytes are run. Raises InvalidInput."""
        content = self._read(file)
        if hashlib.sha256(content).hexdigest() != self._checksums.get(file):
            found = f"{self._repository / file}, whose checksum is not the one in the manifest"
            raise InvalidInput.refusing("url", found, f"{ACCEPTED}, unchanged; export it again")
        return content

    def _read_text(self, file: str) -> str:
        return self._read(file).decode("utf-8")

    def _read(self, file: str) -> bytes:
        path = self._repository / file
        try:
            return path.read_bytes()
        except OSError as error:
            raise InvalidInput.refusing("url", f"no readable {path} ({error.strerror})", ACCEPTED) from None


class _Step:
    """One TorchScript part, called with tensors by argument name, as in Triton's backend."""

    def __init__(self, step: Any, release: _Release) -> None:
        self.module = _load_torchscript(release.read_part(step.model_name, "model.pt"))
        self.inputs = [argument.name for argument in self.module.forward.schema.arguments[1:]]
        (self.output,) = step.output_map.values()


def _load_torchscript(content: bytes) -> Any:
    import torch

    with warnings.catch_warnings():  # TorchScript is deprecated, and what Triton loads
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
        return torch.jit.load(io.BytesIO(content), map_location="cpu").eval()  # type: ignore[no-untyped-call]


def _import_snapshot(release: _Release) -> types.ModuleType:
    """Run the checked source without leaving bytecode in the repository, as an import would."""
    sources = {name: release.read_part("preprocess", f"{name}.py") for name in SNAPSHOT}
    digest = hashlib.sha256(b"".join(sources.values())).hexdigest()
    package = types.ModuleType(f"diptych_snapshot_{digest}")
    package.__path__ = []  # files of one package import each other
    sys.modules[package.__name__] = package
    for name, source in sources.items():
        module = types.ModuleType(f"{package.__name__}.{name}")
        module.__package__ = package.__name__
        sys.modules[module.__name__] = module  # dataclasses look up their module
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def _classification(probabilities: list[float], labels: list[str]) -> list[bytes]:
    """Triton's classification extension: `score:index:label`, the most probable first."""
    ranked = sorted(enumerate(probabilities), key=lambda entry: -entry[1])
    return [f"{score:f}:{index}:{labels[index]}".encode() for index, score in ranked]
