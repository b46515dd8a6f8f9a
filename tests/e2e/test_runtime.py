"""OpenVINO on the CPU: it answers as TorchScript does, and TorchScript serves where it is not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from diptych.config.sections import FusionConfig, ImageConfig
from diptych.export.export import export
from diptych.export.precision import Precision, choose_precision, choose_runtime
from diptych.export.torchscript import to_torchscript
from diptych.models.classifier import Classifier, Inputs
from diptych.models.fusion import FusionHead
from diptych.models.image_backbones import build_image_encoder
from diptych.models.text_backbones import build_text_encoder
from diptych.runs.run import Run
from diptych_serving.errors import UserError
from diptych_serving.openvino_runtime import VERSION_FILE, Unavailable, load_graph
from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.installation import find_installation
from tests.helpers.raw_wire import Item, ask_over_grpc, grpc_channel
from tests.helpers.text_families import save_architecture

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'diptych-serving[openvino]'")
PARTS = ("image_encoder", "text_encoder", "fusion_head")


@pytest.fixture(scope="module")
def repository(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that is to run in OpenVINO, in fp32."""
    path = tmp_path_factory.mktemp("openvino") / "model_repository"
    _, gated = export(tiny_run, path, runtime="openvino")
    assert gated.runtime == "openvino", gated.precision.note
    return path


def answers(repository: Path, items: list[Item], log: Path) -> list[list[float]]:
    with Server(repository, ServerConfig.on_free_ports(log=log)) as server:
        server.wait_until_ready()
        with grpc_channel(server) as channel:
            return [ask_over_grpc(channel, *item).tolist() for item in items]


@pytest.mark.skipif(find_installation().has_native_pytorch, reason="the native backend runs TorchScript")
def test_both_runtimes_answer_alike_and_the_log_says_which_one_runs(
    repository: Path, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answers(repository, items, tmp_path / "openvino.log")
    log = (tmp_path / "openvino.log").read_text()
    for part in PARTS:
        assert log.count(f"{part}: runs in OpenVINO 20") == 1

    off = shutil.copytree(repository, tmp_path / "off")
    for part in PARTS:
        config = off / part / "config.pbtxt"
        config.write_text(
            config.read_text().replace('string_value: "openvino"', 'string_value: "torchscript"')
        )
    expected = answers(off, items, tmp_path / "torchscript.log")
    assert "OpenVINO" not in (tmp_path / "torchscript.log").read_text()
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)

    without_openvino(tmp_path / "venv/bin", monkeypatch)
    fallback = answers(repository, items, tmp_path / "fallback.log")
    log = (tmp_path / "fallback.log").read_text()
    for part in PARTS:
        assert log.count(f"{part}: runs in TorchScript instead of OpenVINO: it is not installed") == 1
    for one, other in zip(fallback, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def without_openvino(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model processes find a virtual environment like this one, where that import fails."""
    site_packages = (
        directory.parent / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    )
    site_packages.mkdir(parents=True)
    (site_packages / "openvino.py").write_text("raise ImportError('hidden by a test')")
    real = sysconfig.get_paths()["purelib"]
    (site_packages / "real.pth").write_text(f"import site; site.addsitedir({real!r})")
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), directory.parent)
    directory.mkdir()
    python = directory / "python3"
    python.symlink_to(Path(sys.executable).resolve())
    monkeypatch.setattr(sys, "executable", str(python))


def test_a_version_says_what_its_export_has_compared(repository: Path) -> None:
    manifest = json.loads((repository / "classifier/1/manifest.json").read_text())
    assert manifest["runtime"] == {
        "name": "openvino",
        "precision": {"image_encoder": "fp32", "text_encoder": "fp32"},
    }
    found = [result for result in manifest["parity"] if result["form"] == "OpenVINO"]
    assert [result["max_difference"] <= 1e-5 for result in found] == [True]
    for part in PARTS:
        assert f"{part}/1/{VERSION_FILE}" in manifest["sha256"]


def test_bf16_is_judged_as_any_other_form_of_fewer_bits(tiny_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model_repository"
    _, gated = export(tiny_run, path, Precision(image="bf16", text="bf16"), runtime="openvino")
    assert (gated.runtime, gated.judgements[0].form) == ("openvino", "OpenVINO")
    assert json.loads((path / f"image_encoder/1/{VERSION_FILE}").read_text()) == {
        "precision": gated.precision.image
    }
    assert gated.file_precision.is_exact


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backbone", ["timm:test_resnet", "timm:test_efficientnet", "timm:test_vit"])
def test_a_batch_without_an_image_does_not_get_the_answer_of_the_batch_before(
    backbone: str, tmp_path: Path
) -> None:
    """OpenVINO 2026.4 left a graph's last output where a ResNet got zero rows."""
    torch.manual_seed(0)
    config = ImageConfig(backbone=backbone, weights="random", size_px=64)
    encoder = build_image_encoder(config).eval()
    text = build_text_encoder(save_architecture(tmp_path / "text", "bert")).eval()
    model = Classifier(encoder, text, FusionHead(FusionConfig(), 3)).eval()
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    tokens = torch.full((4, 8), 7)
    example = Inputs(pixels, torch.ones(4, dtype=torch.bool), tokens, torch.ones_like(tokens))
    part = to_torchscript(model, example)["image_encoder"]
    torch.jit.save(part, tmp_path / "model.pt")
    inputs = [
        {"name": "pixel_values", "data_type": "TYPE_UINT8", "dims": ["3", "-1", "-1"]},
        {"name": "image_present", "data_type": "TYPE_BOOL", "dims": ["1"]},
    ]
    graph = load_graph(tmp_path / "model.pt", inputs, read_module=torch.jit.load, precision="fp32")
    for present in ([1, 1, 1, 1], [0], [1], [0], [1, 0, 1], [0, 0], [0, 0, 0, 0]):
        rows = torch.tensor(present, dtype=torch.bool)[:, None]
        (found,) = graph(pixels[: len(rows)].numpy(), rows.numpy())
        expected = part(pixels[: len(rows)], rows)
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)


def test_a_converted_graph_is_kept_and_a_half_written_one_is_made_again(
    repository: Path, tmp_path: Path
) -> None:
    inputs = [
        {"name": f"{name}_features", "data_type": "TYPE_FP32", "dims": ["512"]} for name in ("image", "text")
    ]
    file = repository / "fusion_head/1/model.pt"
    graph = load_graph(file, inputs, read_module=torch.jit.load, precision="fp32", cache=tmp_path / "kept")
    assert graph.inputs == ["image_features", "text_features"]
    names = sorted(path.suffix for path in (tmp_path / "kept").iterdir())
    assert names == [".bin", ".lock", ".xml"]
    (kept,) = (tmp_path / "kept").glob("*.bin")
    kept.unlink()
    load_graph(file, inputs, read_module=torch.jit.load, precision="fp32", cache=tmp_path / "kept")
    assert kept.is_file()


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_graphs_inputs_have_the_names_of_the_config(
    repository: Path, tmp_path: Path, is_kept: bool
) -> None:
    inputs = [
        {"name": "image_present", "data_type": "TYPE_BOOL", "dims": ["1"]},
        {"name": "pixel_values", "data_type": "TYPE_UINT8", "dims": ["3", "-1", "-1"]},
    ]
    graph = load_graph(
        repository / "image_encoder/1/model.pt",
        inputs,
        read_module=torch.jit.load,
        precision="fp32",
        cache=tmp_path if is_kept else None,
    )
    assert graph.inputs == ["pixel_values", "image_present"]  # in the order of forward's arguments


def test_openvino_is_imported_without_the_package_that_sends_usage_data() -> None:
    program = (
        "import sys; from diptych_serving.openvino_runtime import _import_openvino; _import_openvino(); "
        "print([name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


LOAD_TWO_THEN_SIGNAL = """
import signal, sys
from pathlib import Path
from diptych_serving.openvino_runtime import load_graph

names = ("image_features", "text_features")
inputs = [{"name": name, "data_type": "TYPE_FP32", "dims": ["512"]} for name in names]

def load():
    from torch import jit
    return load_graph(Path(sys.argv[1]), inputs, read_module=jit.load, precision="fp32")

signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first, second = load(), load()
del first
del second
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_process_handles_signals_after_its_graphs_are_gone(repository: Path) -> None:
    """Data loaders cause SIGCHLD, and users press Ctrl-C. In a process of its own, because it may crash."""
    command = [sys.executable, "-c", LOAD_TWO_THEN_SIGNAL, str(repository / "fusion_head/1/model.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_graph_that_openvino_does_not_take_is_refused_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "model.pt"
    broken.write_bytes(b"no archive")
    with pytest.raises(Unavailable, match=r"^it does not take the graph: [^\n]+$"):
        load_graph(broken, [], read_module=torch.jit.load, precision="fp32")


@pytest.mark.parametrize(
    ("request_", "target", "precision", "message"),
    [
        ("onnx", "cpu", "fp32", "--runtime onnx: expected one of auto, torchscript, openvino"),
        ("openvino", "gpu", "fp32", "--runtime openvino: is for --target cpu in fp32 or bf16"),
        ("openvino", "cpu", "int8", "--runtime openvino: is for --target cpu in fp32 or bf16"),
    ],
)
def test_a_runtime_that_does_not_fit_is_refused(
    request_: str, target: str, precision: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_runtime(request_, target, choose_precision(precision, target))


def test_the_runtime_is_torchscript_where_openvino_does_not_fit() -> None:
    assert choose_runtime("auto", "gpu", choose_precision("fp16", "gpu")) == "torchscript"
    assert choose_runtime("auto", "cpu", choose_precision("int8", "cpu")) == "torchscript"
    assert choose_runtime("auto", "cpu", choose_precision("fp32", "cpu")) == "openvino"
