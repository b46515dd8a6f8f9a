"""Runs a TorchScript file in OpenVINO on a CPU. It knows neither Triton nor Diptych's models.

The `pytorch` backend loads this file by its path, so it imports nothing else of ours. Converting needs torch,
which the caller has: it gives the function that reads the file. A converted graph is kept, and a process that
finds it starts without torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What a version's directory says of the graph that its export has compared: {"precision": "fp32"} or "bf16".
VERSION_FILE = "openvino.json"
CACHE_ENV = "DIPTYCH_OPENVINO_CACHE"  # the folder for converted graphs; `diptych serve` sets it
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
TYPES = {"TYPE_BOOL": "boolean"}  # others by rule: TYPE_UINT8 is u8, TYPE_FP32 is f32


class Unavailable(Exception):
    """OpenVINO is not installed, or it cannot take this graph. The message is one line."""


class OpenVinoGraph:
    """One compiled graph. Shapes are dynamic: a batch size or a length that is new costs some milliseconds.

    inputs     names, in the order of the arguments
    precision  "fp32" or "bf16": what it computes in. fp32 where a CPU has no instructions for bf16
    version    OpenVINO's
    """

    def __init__(self, compiled: Any, inputs: list[str], version: str) -> None:
        self.inputs = inputs
        self.precision = "bf16" if "bf" in str(compiled.get_property("INFERENCE_PRECISION_HINT")) else "fp32"
        self.version = version
        self._num_outputs = len(compiled.outputs)
        self._request = compiled.create_infer_request()

    def __call__(self, *arrays: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        """The outputs in order, as new arrays. Not for several threads at once."""
        results = self._request.infer(list(arrays), share_inputs=True)
        return [results[index] for index in range(self._num_outputs)]


def load_graph(
    model_file: Path,
    inputs: Sequence[Mapping[str, Any]],
    *,
    read_module: Callable[[Path], Any],
    precision: str,
    num_threads: int = 1,
    cache: Path | None = None,
) -> OpenVinoGraph:
    """Convert a TorchScript file, or take what an earlier process converted, and compile it.

    inputs       as a model's config lists them: name, data_type and dims without the batch dimension
    read_module  reads a file with torch, for the CPU; called where the cache has no converted graph
    precision    "fp32" or "bf16"
    cache        a folder for converted graphs; None: keep nothing
    raises       Unavailable
    """
    openvino = _import_openvino()
    try:
        core = _core(openvino)
        model = _read_converted(openvino, core, model_file, inputs, read_module, cache)
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Each process would pin its thread to the same first core.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = core.compile_model(model, "CPU", options)
        known = {each["name"] for each in inputs}  # compiling adds names of its own
        names = [next(iter(known & tensor.get_names())) for tensor in compiled.inputs]
        return OpenVinoGraph(compiled, names, openvino.__version__.partition("-")[0])
    except Unavailable:
        raise
    except Exception as error:  # OpenVINO and TorchScript raise types of their own, without a common base
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise Unavailable(
            f"it does not take the graph: {lines[-1] if lines else type(error).__name__}"
        ) from error


def _import_openvino() -> Any:
    # OpenVINO's package sends usage data at each import, through this package. Without it, it sends nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise Unavailable(f"it is not installed ({error}); pip install 'diptych-serving[openvino]'") from None
    return openvino


@functools.cache
def _core(openvino: Any) -> Any:
    """One for the life of the process.

    A core's CPU plugin gives its thread an alternate signal stack, until it is destroyed. Several that end in
    another order than the reverse leave a freed stack in use, and the next signal kills the process.
    """
    return openvino.Core()


def _read_converted(
    openvino: Any,
    core: Any,
    model_file: Path,
    inputs: Sequence[Mapping[str, Any]],
    read_module: Callable[[Path], Any],
    cache: Path | None,
) -> Any:
    """The graph. From the cache its constants are mapped from the file, so that instances share them."""
    if cache is None:
        return _convert(openvino, model_file, inputs, read_module)
    shapes = [(each["name"], each["data_type"], [int(dim) for dim in each["dims"]]) for each in inputs]
    content = hashlib.sha256(model_file.read_bytes())
    content.update(repr((openvino.__version__, shapes)).encode())
    file = cache / f"{content.hexdigest()[:32]}.xml"
    try:
        with _one_process(file.with_suffix(".lock")):
            if not (file.is_file() and file.with_suffix(".bin").is_file()):
                _write(openvino, _convert(openvino, model_file, inputs, read_module), file)
            else:
                os.utime(file)
                os.utime(file.with_suffix(".bin"))
            return core.read_model(file)
    except OSError:  # a folder that cannot be written: convert at each start
        return _convert(openvino, model_file, inputs, read_module)


def _convert(
    openvino: Any,
    model_file: Path,
    inputs: Sequence[Mapping[str, Any]],
    read_module: Callable[[Path], Any],
) -> Any:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and OpenVINO uses what torch deprecates
        module = read_module(model_file)
        decoder = TorchScriptPythonDecoder(module)  # the frontend holds no reference of its own
        frontend = FrontEndManager().load_by_framework("pytorch")
        loaded = frontend.load(decoder)
        arguments = [argument.name for argument in module.forward.schema.arguments[1:]]
        by_name = {each["name"]: each for each in inputs}
        if set(arguments) != set(by_name):
            raise Unavailable(f"the config names {sorted(by_name)} and the graph takes {arguments}")
        # Known before the conversion: some operators need the rank of what they are given.
        for place, name in zip(loaded.get_inputs(), arguments, strict=True):
            dims = [-1, *(int(dim) for dim in by_name[name]["dims"])]
            loaded.set_partial_shape(place, openvino.PartialShape(dims))
            loaded.set_element_type(place, getattr(openvino.Type, _type_name(by_name[name]["data_type"])))
        model = frontend.convert(loaded)
    for tensor, name in zip(model.inputs, arguments, strict=True):
        tensor.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    return model


def _type_name(data_type: str) -> str:
    """TYPE_UINT8, TYPE_INT64, TYPE_FP32 and the like as OpenVINO calls them: u8, i64, f32."""
    return TYPES.get(data_type) or data_type.removeprefix("TYPE_").lower().replace("uint", "u").replace(
        "int", "i"
    ).replace("fp", "f")


def _write(openvino: Any, model: Any, file: Path) -> None:
    """Both parts under other names first: a process that is killed leaves no half graph."""
    parts = [file.with_suffix(suffix) for suffix in (".bin", ".xml")]
    unfinished = file.with_name(f"{file.stem}-{os.getpid()}.xml")
    try:
        openvino.save_model(model, unfinished, compress_to_fp16=False)
        for part in parts:
            unfinished.with_suffix(part.suffix).rename(part)
    except RuntimeError as error:  # a full disk
        raise OSError(str(error)) from error
    finally:
        for part in parts:
            unfinished.with_suffix(part.suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Instances start together; one converts, the others wait and read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
