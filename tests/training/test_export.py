"""The exported repository: what it holds, what stops it, and what a second export may not touch."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from torch import Tensor, nn
from tritonclient.grpc.model_config_pb2 import ModelConfig

from diptych.data.dataset import to_inputs
from diptych.export.export import export
from diptych.export.precision import choose_precision
from diptych.export.torchscript import run_parts
from diptych.models.classifier import Inputs
from diptych.runs.run import Run
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Preprocessor, Row
from diptych_serving.repository.layout import read_manifest
from diptych_serving.repository.settings import Settings
from tests.helpers.catalogues import make_catalogue
from tests.helpers.tiny_model import relabel
from tests.helpers.tiny_repository import load_script

PARTS = ("image_encoder", "text_encoder", "fusion_head")
MODELS = ("classifier", "preprocess", *PARTS, "tally")


class ScalesSmallBatches(nn.Module):
    """A backbone with a branch in Python, which tracing freezes as its example took it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        scale = 3.0 if len(pixels) < 5 else 1.0
        return scale * self.backbone(pixels)


@pytest.fixture
def spoiled_run(tiny_run: Run) -> Run:
    model = copy.deepcopy(tiny_run.model)
    model.image_encoder.backbone = ScalesSmallBatches(model.image_encoder.backbone)
    return dataclasses.replace(tiny_run, model=model)


@pytest.fixture
def repository(exported_repository: Path, tmp_path: Path) -> Path:
    """A copy of version 1, to add others to."""
    return shutil.copytree(exported_repository, tmp_path / "model_repository")


@pytest.fixture(scope="module")
def parts(exported_repository: Path) -> dict[str, torch.jit.ScriptModule]:
    return {name: load_script(exported_repository / name / "1/model.pt") for name in PARTS}


def contents(directory: Path) -> dict[str, str]:
    """Every file below and its checksum; every directory. Not what Python keeps of modules that ran: other
    tests serve the session's repository."""
    return {
        str(path.relative_to(directory)): checksum(path) if path.is_file() else "directory"
        for path in sorted(directory.rglob("*"))
        if "__pycache__" not in path.parts
    }


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_ensemble(repository: Path) -> ModelConfig:
    return text_format.Parse((repository / "classifier/config.pbtxt").read_text(), ModelConfig())


@pytest.mark.parametrize("part", PARTS)
def test_the_arguments_of_forward_carry_the_configs_names(
    parts: dict[str, torch.jit.ScriptModule], exported_repository: Path, part: str
) -> None:
    config = text_format.Parse((exported_repository / part / "config.pbtxt").read_text(), ModelConfig())
    arguments = [argument.name for argument in parts[part].forward.schema.arguments[1:]]
    assert arguments == [tensor.name for tensor in config.input]


def test_a_repository_holds_one_complete_version_of_every_model(exported_repository: Path) -> None:
    assert sorted(contents(exported_repository)) == sorted(
        [
            *MODELS,
            *(f"{model}/config.pbtxt" for model in MODELS),
            *(f"{model}/1" for model in MODELS),
            *(f"{part}/1/model.pt" for part in PARTS),
            "classifier/1/labels.txt",
            *(f"{model}/warmup" for model in ("preprocess", "image_encoder", "text_encoder")),
            *(f"preprocess/warmup/{name}" for name in ("image", "text")),
            "image_encoder/warmup/true",
            "text_encoder/warmup/ones",
            "classifier/1/golden.json",
            "classifier/1/manifest.json",
            *(f"{step}/1/{file}" for step in ("preprocess", "tally") for file in ("model.py", "metering.py")),
            "tally/1/labels.txt",
            "preprocess/1/image_files.py",
            "preprocess/1/preprocessing.py",
            "preprocess/1/preprocessing.json",
            "preprocess/1/tokenizer.json",
        ]
    )


def test_the_manifest_keeps_the_parity_figures_and_the_checksum_of_every_file(
    exported_repository: Path, tiny_run: Run
) -> None:
    manifest = json.loads((exported_repository / "classifier/1/manifest.json").read_text())
    assert [result["form"] for result in manifest["parity"]] == ["TorchScript", "reloaded files"]
    for result in manifest["parity"]:
        assert 0 <= result["max_difference"] <= 1e-5
        assert result["label_agreement"] == 1.0
        assert result["num_rows"] > 100
    files = {name: found for name, found in contents(exported_repository).items() if found != "directory"}
    del files["classifier/1/manifest.json"]
    assert manifest["sha256"] == files
    assert manifest["run"]["weights_sha256"] == checksum(tiny_run.directory / "model.safetensors")
    assert (manifest["version"], manifest["labels"]) == (1, tiny_run.labels)
    assert manifest["signatures"]["image_encoder"].startswith("forward(")


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("words", ["leaf", "a leaf and a garden " * 20], ids=["short", "full length"])
@pytest.mark.parametrize("absent", ["nothing", "pictures", "words", "in turns"])
def test_the_files_answer_as_the_eager_model(
    parts: dict[str, torch.jit.ScriptModule],
    tiny_run: Run,
    tmp_path: Path,
    batch_size: int,
    words: str,
    absent: str,
) -> None:
    pictures = sorted(make_catalogue(tmp_path / "items", 9).parent.glob("*.png"))[:batch_size]
    has_picture = {"pictures": [False] * 7, "in turns": [True, False, True] * 3}.get(absent, [True] * 7)
    has_words = {"words": [False] * 7, "in turns": [True, True, False] * 3}.get(absent, [True] * 7)
    rows = tiny_run.preprocessor.rows(
        [
            (picture.read_bytes() * has_picture[index], f"{words} {index}".encode() * has_words[index])
            for index, picture in enumerate(pictures)
        ]
    )
    batch = to_inputs([row for row in rows if isinstance(row, Row)])
    assert len(batch.input_ids) == batch_size
    torch.testing.assert_close(run_parts(parts, batch), eager_answer(tiny_run, batch), atol=1e-5, rtol=0)


@torch.inference_mode()
def eager_answer(run: Run, batch: Inputs) -> Tensor:
    """As the training process answers, with the temperature of the modalities that each row has."""
    both, image_alone, text_alone = run.model.fusion_head.temperature
    temperature = torch.where(
        batch.text_present, torch.where(batch.image_present, both, text_alone), image_alone
    )
    return (run.model.eval()(batch) / temperature[:, None]).softmax(1)


@pytest.mark.parametrize("part", PARTS)
def test_no_device_is_baked_into_a_file(parts: dict[str, torch.jit.ScriptModule], part: str) -> None:
    graph = str(parts[part].inlined_graph)
    assert "prim::Constant" in graph
    assert 'value="cpu"' not in graph
    assert "cuda" not in graph


def test_a_graph_that_differs_stops_the_export_with_nothing_written(spoiled_run: Run, tmp_path: Path) -> None:
    target = tmp_path / "new" / "model_repository"
    target.parent.mkdir()
    with pytest.raises(
        UserError,
        match=r"parity: TorchScript differs .* by \d\.\d+e[-+]\d+ .*at most 1e-05 is accepted. Nothing was w",
    ):
        export(spoiled_run, target)
    assert contents(tmp_path) == {"new": "directory"}


def test_a_model_without_numbers_is_not_exported(tiny_run: Run, tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_run.model)
    model.fusion_head.classifier.bias.data[0] = float("nan")
    with pytest.raises(UserError, match="differs from the eager model by nan"):
        export(dataclasses.replace(tiny_run, model=model), tmp_path / "model_repository")
    assert contents(tmp_path) == {}


def test_a_refused_second_export_leaves_the_first_as_it_was(spoiled_run: Run, repository: Path) -> None:
    before = contents(repository.parent)
    with pytest.raises(UserError, match="Nothing was written"):
        export(spoiled_run, repository)
    assert contents(repository.parent) == before


def test_exporting_again_adds_a_version_of_every_part_and_changes_nothing_that_serves(
    tiny_run: Run, repository: Path, tmp_path: Path
) -> None:
    first = contents(repository)
    version, _ = export(tiny_run, repository)
    second = contents(repository)
    assert version == 2
    assert {name: second[name] for name in first} == first
    added = {name for name in second if name not in first}
    assert added == {name.replace("/1", "/2") for name in first if "/1" in name}
    ensemble = read_ensemble(repository)
    assert list(ensemble.version_policy.specific.versions) == [1]
    assert json.loads((repository / "classifier/2/manifest.json").read_text())["version"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model_repository"]


def test_settings_are_exported_and_outlive_the_next_version(tiny_run: Run, tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    export(tiny_run, repository, settings=Settings(image_encoder_instances=2, max_batch_size=16))
    export(tiny_run, repository)
    assert "instance_group [ { count: 2 } ]" in (repository / "image_encoder/config.pbtxt").read_text()
    ensemble = read_ensemble(repository)
    assert ensemble.max_batch_size == 16
    assert (repository / "image_encoder/2/model.pt").is_file()
    assert list(ensemble.version_policy.specific.versions) == [1]  # until it is activated


def test_pictures_for_warming_up_have_the_models_size_and_are_left_out_where_versions_differ(
    tiny_run: Run, repository: Path
) -> None:
    config = repository / "image_encoder/config.pbtxt"
    assert config.read_text().count("dims: [ 3, 64, 64 ]") == 3
    assert 'input_data_file: "true"' in config.read_text()
    spec = dataclasses.replace(tiny_run.preprocessor.spec, image_size_px=48)
    smaller = Preprocessor(spec, tiny_run.preprocessor.tokenizer_json)
    export(dataclasses.replace(tiny_run, preprocessor=smaller), repository)
    assert config.read_text().count("dims: [ 3, 64, 64 ]") == 3
    assert 'input_data_file: "true"' not in config.read_text()


def test_other_labels_are_refused_unless_asked_for_by_name(tiny_run: Run, repository: Path) -> None:
    other = relabel(tiny_run, ["warm", "green", "frozen"])
    before = contents(repository)
    with pytest.raises(
        UserError,
        match=r"version 1, which serves, has other labels than .*: it adds frozen; lacks cold; has the order "
        r"warm, green, frozen\..*--to, or here with --allow-new-labels",
    ):
        export(other, repository)
    assert contents(repository) == before
    assert export(other, repository, allow_new_labels=True)[0] == 2
    assert (repository / "classifier/2/labels.txt").read_text() == "warm\ngreen\nfrozen\n"
    assert (repository / "classifier/1/labels.txt").read_text() == "cold\ngreen\nwarm\n"
    assert {name: found for name, found in contents(repository).items() if name in before} == before


def make_a_foreign_directory(path: Path) -> None:
    (path / "photos").mkdir(parents=True)


def make_an_empty_directory(path: Path) -> None:
    path.mkdir()


def make_a_file(path: Path) -> None:
    path.write_text("a file")


def make_source_configs(path: Path) -> None:
    (path / "classifier").mkdir(parents=True)
    (path / "classifier/config.pbtxt").write_text('name: "classifier"')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_a_foreign_directory, "exists and is not a Diptych repository; name a new directory with --to"),
        (make_an_empty_directory, "exists and is not a Diptych repository; name a new directory with --to"),
        (make_a_file, "exists and is not a Diptych repository; name a new directory with --to"),
        (make_source_configs, "holds configs but no version of a model; name a new directory with --to"),
    ],
)
def test_what_is_no_repository_is_left_alone(
    tiny_run: Run, tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    target = tmp_path / "target"
    make(target)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        export(tiny_run, target)
    assert contents(tmp_path) == before


def test_an_export_that_cannot_be_moved_into_place_takes_all_back(
    tiny_run: Run, repository: Path, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        shutil.move(repository / "preprocess", elsewhere)
        # On another file system, where a directory cannot be renamed to.
        (repository / "preprocess").symlink_to(Path(elsewhere, "preprocess"))
        before = contents(tmp_path)
        with pytest.raises(UserError, match=r"version 2 could not be added \(.*preprocess.*\); nothing was"):
            export(tiny_run, repository)
        assert contents(tmp_path) == before


def test_a_place_that_cannot_be_written_is_named(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"file/repository: version 1 could not be added \(.*'.*/file'\); noth"
    ):
        export(tiny_run, tmp_path / "file/repository")
    assert contents(tmp_path) == {"file": checksum(tmp_path / "file")}


def test_a_repository_takes_versions_for_one_kind_of_device_alone(
    exported_repository: Path, tiny_run: Run, tmp_path: Path
) -> None:
    repository = shutil.copytree(exported_repository, tmp_path / "models")
    with pytest.raises(UserError, match=r"version 1, which serves, was exported with --target cpu"):
        export(tiny_run, repository, choose_precision("fp32", "gpu"), target="gpu")
    assert not (repository / "classifier/2").exists()
    assert read_manifest(repository, 1)["target"] == "cpu"
