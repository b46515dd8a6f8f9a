"""Checks what is no kind of Kubernetes' own against the models that its projects publish.

An API server drops what it does not know without a word; here it is an error.
Usage: custom_resources.py RENDERED.yaml...
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from pydantic import ValidationError

MODELS = {model.__name__: model for model in (PodMonitor, PrometheusRule, ScaledObject)}
# KServe's models of the parts of each kind, by where the part is.
KSERVE = {
    "InferenceService": {
        "spec.predictor": "v1beta1_predictor_spec",
        "spec.predictor.model": "v1beta1_model_spec",
    },
    "ServingRuntime": {"spec": "v1alpha1_serving_runtime_spec"},
}


def main() -> None:
    problems, num_checked = [], 0
    for path in sys.argv[1:]:
        for manifest in yaml.safe_load_all(Path(path).read_text("utf-8")):
            kind = manifest["kind"]
            if kind in MODELS or kind in KSERVE:
                num_checked += 1
                problems += [f"{path}: {kind}: {problem}" for problem in check(kind, manifest)]
    if problems:
        sys.exit("\n".join(problems))
    sys.stdout.write(f"{num_checked} custom resources are as KEDA, the operator and KServe expect.\n")


def check(kind: str, manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with it, in words."""
    if kind in KSERVE:
        # The pods inside are checked by tests/docker/test_kubernetes.py.
        for path, model in KSERVE[kind].items():
            part = manifest
            for key in path.split("."):
                part = part.get(key, {})
            for key in set(part) - kserve_keys(model):
                yield f"{path}.{key} is unknown"
        return
    try:
        model = MODELS[kind].model_validate(manifest)
    except ValidationError as error:
        yield str(error)
    else:
        understood = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
        yield from unknown_keys(manifest, understood, "")


def unknown_keys(written: Any, understood: Any, where: str) -> Iterator[str]:
    """Keys that a model has read over."""
    if isinstance(written, dict):
        for key, value in written.items():
            if key in understood:
                yield from unknown_keys(value, understood[key], f"{where}.{key}")
            else:
                yield f"{where.lstrip('.')}.{key} is unknown"
    elif isinstance(written, list):
        for index, pair in enumerate(zip(written, understood, strict=True)):
            yield from unknown_keys(*pair, f"{where}[{index}]")


def kserve_keys(module: str) -> set[str]:
    """The keys of one of the KServe SDK's models.

    Read, not imported: the SDK's dependencies do not go with checkov's.
    """
    package = importlib.util.find_spec("kserve")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("kserve is not installed: make lint-kubernetes installs it")
    source = Path(package.origin).with_name("models") / f"{module}.py"
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "attribute_map":
            return set(ast.literal_eval(node.value).values())
    raise LookupError(f"{source}: no attribute_map")


if __name__ == "__main__":
    main()
