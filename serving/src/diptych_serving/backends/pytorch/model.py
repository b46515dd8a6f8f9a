"""Triton's `pytorch` backend where there is no native one: serves model.pt, a TorchScript file.

Triton runs this file with its Python stub for every model whose config says `backend: "pytorch"`. It follows
the native LibTorch backend's rules for names and its parameters, so that one repository loads in both.
Where the config says `CPU_RUNTIME: "openvino"` and the version's directory says that the export has compared
the answers, it runs the graph in OpenVINO on a CPU. Native backends ignore both.
It knows Triton, TorchScript and OpenVINO; it must know nothing about Diptych's models.
"""

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

DEFAULT_FILE = "model.pt"
OUR_PACKAGE = Path(__file__).resolve().parents[2]


class TritonPythonModel:
    """One instance, one process; Triton calls `initialize` once, then `execute` with one batch at a time."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self._name = config["name"]
        file = config.get("default_model_filename") or DEFAULT_FILE
        path = Path(args["model_repository"]) / args["model_version"] / file
        if not path.is_file():
            raise FileNotFoundError(f"{args['model_version']}/{file} is not there")

        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self._graph = None
        if device == "cpu" and parameters.get("CPU_RUNTIME", "").lower() == "openvino":
            self._graph = self._load_openvino(path, config["input"], parameters, args["model_instance_name"])
        if self._graph is None:
            self._graph = TorchScript(path, device, parameters)

        self._inputs = order_inputs([tensor["name"] for tensor in config["input"]], self._graph.inputs)
        self._outputs = order_outputs([tensor["name"] for tensor in config["output"]])
        self._dtypes = {
            tensor["name"]: np.dtype(pb_utils.triton_string_to_numpy(tensor["data_type"]))
            for tensor in config["output"]
        }
        self._meter = import_file(OUR_PACKAGE / "metering.py").Meter(
            pb_utils, args
        )  # says that this process is alive

    def execute(self, requests):
        """Answer every request; never raise, for that would show a traceback to strangers."""
        responses = [None] * len(requests)
        for indices in group_by_shape(requests, self._inputs):
            answers = self._answer_or_fail([requests[index] for index in indices])
            for index, answer in zip(indices, answers, strict=True):
                responses[index] = answer
        return responses

    def finalize(self):
        self._meter.stop()

    def _load_openvino(self, path, inputs, parameters, instance):
        """The graph in OpenVINO. None where the export has not compared it, or where it cannot run."""
        runtime = import_file(OUR_PACKAGE / "openvino_runtime.py")
        compared = path.with_name(runtime.VERSION_FILE)
        if not compared.is_file():
            return None
        is_first = instance.endswith("_0")  # one line for a model, not one for each instance
        cache = os.environ.get(runtime.CACHE_ENV)
        try:
            graph = runtime.load_graph(
                path,
                inputs,
                read_module=read_torchscript,
                precision=json.loads(compared.read_text("utf-8"))["precision"],
                num_threads=int(parameters.get("INTRA_OP_THREAD_COUNT", 1)),
                cache=Path(cache) if cache else None,
            )
        except runtime.Unavailable as error:
            if is_first:
                pb_utils.Logger.log_warn(f"{self._name}: runs in TorchScript instead of OpenVINO: {error}")
            return None
        if is_first:
            pb_utils.Logger.log_info(f"{self._name}: runs in OpenVINO {graph.version}, {graph.precision}")
        return graph

    def _answer_or_fail(self, requests):
        try:
            return self._answer(requests)
        except Exception as error:
            if len(requests) > 1:  # find the culprit, spare the others
                return [self._answer_or_fail([request])[0] for request in requests]
            pb_utils.Logger.log_error(f"{self._name}: {type(error).__name__}: {error}")
            message = f"{self._name}: an internal error; the server's log has it"
            error = pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=error)]

    def _answer(self, requests):
        """Run all rows of all requests as one batch, then deal the rows out again."""
        columns = [[array_of(request, name) for request in requests] for name in self._inputs]
        num_rows = [len(array) for array in columns[0]]
        results = self._graph(*(join(arrays) for arrays in columns))
        arrays = self._to_arrays(results, sum(num_rows))

        ends = np.cumsum(num_rows)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, array[end - count : end]) for name, array in arrays.items()]
            )
            for count, end in zip(num_rows, ends, strict=True)
        ]

    def _to_arrays(self, results, num_rows):
        """The graph's results by output name, checked against the config as the native backend does."""
        if len(results) != len(self._outputs):
            raise ValueError(f"forward gave {len(results)} tensors, config.pbtxt names {len(self._outputs)}")
        arrays = {}
        for name, array in zip(self._outputs, results, strict=True):
            if array.dtype != self._dtypes[name] or len(array) != num_rows:
                raise ValueError(
                    f"forward gave {name} as {array.dtype} with {len(array)} rows; "
                    f"config.pbtxt and the batch say {self._dtypes[name]} with {num_rows}"
                )
            arrays[name] = array
        return arrays


class TorchScript:
    """A TorchScript file with the native backend's parameters; torch is imported when one is loaded."""

    def __init__(self, path, device, parameters):
        import torch

        def is_on(key, default):
            return parameters.get(key, default).lower() == "true"

        # One thread per instance, where the native default is all cores: instances are processes here, and
        # two-threaded ones on two cores gave 18 requests/s where one-threaded ones gave 92.
        torch.set_num_threads(int(parameters.get("INTRA_OP_THREAD_COUNT", 1)))
        torch.set_num_interop_threads(int(parameters.get("INTER_OP_THREAD_COUNT", 1)))
        torch._C._jit_set_profiling_executor(is_on("ENABLE_JIT_EXECUTOR", "true"))
        torch._C._jit_set_profiling_mode(is_on("ENABLE_JIT_PROFILING", "true"))
        torch._C._set_graph_executor_optimize(not is_on("DISABLE_OPTIMIZED_EXECUTION", "false"))
        torch.backends.cudnn.enabled = not is_on("DISABLE_CUDNN", "false")
        self._no_grad = torch.inference_mode if is_on("INFERENCE_MODE", "true") else torch.no_grad
        self._from_numpy, self._device = torch.from_numpy, torch.device(device)
        self._module = read_torchscript(path, self._device)
        self.inputs = [argument.name for argument in self._module.forward.schema.arguments[1:]]

    def __call__(self, *arrays):
        """The outputs in order, as arrays."""
        with self._no_grad():
            results = self._module(*(self._from_numpy(array).to(self._device) for array in arrays))
        results = list(results) if isinstance(results, (tuple, list)) else [results]
        return [result.detach().contiguous().cpu().numpy() for result in results]


def order_inputs(names, arguments):
    """The config's input names in forward's order: by argument name, by NAME__0 index, or as listed."""
    if len(names) != len(arguments):
        raise ValueError(f"config.pbtxt lists inputs {names}, forward takes {arguments}")
    if set(names) == set(arguments):
        return arguments
    return order_by_index(names) or names


def order_outputs(names):
    """The config's output names in the order that forward returns them: by NAME__0 index, or as listed."""
    return order_by_index(names) or names


def order_by_index(names):
    """Names like NAME__0, NAME__1 in the order of their numbers; None unless all of them are."""
    numbers = {name: name.rpartition("__")[2] for name in names if "__" in name}
    if len(numbers) < len(names) or not all(number.isdigit() for number in numbers.values()):
        return None
    return sorted(names, key=lambda name: int(numbers[name]))


def group_by_shape(requests, names):
    """Indices of the requests that can be one batch. Triton's batcher sends equal shapes only, as a rule."""
    groups = {}
    for index, request in enumerate(requests):
        shapes = tuple(tuple(array_of(request, name).shape[1:]) for name in names)
        groups.setdefault(shapes, []).append(index)
    return list(groups.values())


def read_torchscript(path, device="cpu"):
    import torch

    with warnings.catch_warnings():
        # TorchScript is deprecated, and still what the native backend loads.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        return torch.jit.load(str(path), map_location=device)


def import_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def array_of(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def join(arrays):
    """Rows of all requests in one array; a single request's is passed on as it is, without a copy."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
