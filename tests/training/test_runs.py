"""A run directory holds one whole run or none, and nothing of an earlier one."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.config.loader import load_config
from diptych.data.catalogue import read_catalogue
from diptych.data.labels import check_labels, read_labels, write_labels
from diptych.evaluation.evaluate import evaluate
from diptych.evaluation.predict import predict
from diptych.files import write_json
from diptych.runs.checkpoint import CHECKPOINT_FILE, load_checkpoint
from diptych.runs.directory import UNFINISHED, begin_run
from diptych.runs.fingerprint import digest_items
from diptych.runs.run import Run, load_run
from diptych.train.train import train
from diptych_serving.errors import UserError
from tests.helpers.catalogues import write_picture


@pytest.fixture
def copied_run(tiny_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run.directory, tmp_path / "copied"))


def test_a_run_that_cannot_be_written_leaves_the_one_before_and_resumes(
    tiny_config: Path, tiny_run: Run, copied_run: Path
) -> None:
    (copied_run / "notes.txt").write_text("the user's own")
    obstacle = copied_run / UNFINISHED / "model.safetensors"
    obstacle.mkdir(parents=True)
    config = load_config(tiny_config, ["train.epochs=1", 'data.labels=["warm", "green", "cold"]'])
    with pytest.raises(UserError, match=r"cannot write the finished run: Is a directory\. Make room"):
        train(config, copied_run)
    assert predict(load_run(copied_run), b"", "snow and ice") == predict(tiny_run, b"", "snow and ice")
    assert "test" in json.loads((copied_run / "metrics.json").read_text())

    obstacle.rmdir()
    run = train(config, copied_run)
    assert (run.directory, load_run(copied_run).labels) == (copied_run, ["warm", "green", "cold"])
    assert "test" not in json.loads((copied_run / "metrics.json").read_text())
    names = {path.name for path in copied_run.iterdir()}
    assert "notes.txt" in names
    assert not names & {"report.html", "confusion_matrix.json", UNFINISHED, CHECKPOINT_FILE, "training.lock"}
    assert not list(copied_run.parent.glob(".copied*"))


def test_two_trainings_in_one_directory_are_refused_with_the_process_named(tmp_path: Path) -> None:
    with (
        begin_run(tmp_path / "run"),
        pytest.raises(UserError, match=f"process {os.getpid()} on .* is training there"),
        begin_run(tmp_path / "run"),
    ):
        pass


def test_a_training_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), begin_run(tmp_path / "run"):
        raise RuntimeError
    assert not (tmp_path / "run").exists()


def test_a_run_is_taken_back_after_a_kill_between_the_renames(tiny_run: Run, copied_run: Path) -> None:
    copied_run.rename(copied_run.with_name(".copied.replaced"))
    with begin_run(copied_run):
        assert load_run(copied_run).labels == tiny_run.labels


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda path: path.write_text(""), "taken", "is a file; name a directory for the run"),
        (lambda path: path.write_text(""), "taken/run", "no run can be written there: Not a directory"),
        (lambda path: (path / "photos").mkdir(parents=True), "taken", "holds photos and no run; name a new"),
        (lambda path: os.symlink("/proc/self/mounts", path), "taken", "is a file"),
        (lambda path: None, "/proc/run", "no run can be written there: No such file or directory"),
        (lambda path: None, "/", "is a mount point, which cannot be replaced"),
    ],
)
def test_an_output_that_cannot_be_written_is_noticed_before_anything_is_read(
    tiny_config: Path, tmp_path: Path, make, name: str, message: str
) -> None:
    make(tmp_path / "taken")
    config = load_config(tiny_config, ["data.train_csv=absent.csv"])
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / name)


def test_files_mixed_from_two_runs_are_refused(copied_run: Path) -> None:
    write_labels(["warm", "green", "cold"], copied_run / "labels.txt")
    with pytest.raises(UserError, match=r"mixed from several runs \(labels.txt, .* saved with\)"):
        load_run(copied_run)


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessing.json", "labels.txt"])
def test_a_cut_file_of_a_run_is_one_message(copied_run: Path, name: str) -> None:
    path = copied_run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="copied: damaged, or mixed from several runs"):
        load_run(copied_run)


def test_weights_that_are_not_finite_are_refused(copied_run: Path) -> None:
    path = copied_run / "model.safetensors"
    weights = load_file(path)
    weights["fusion_head.temperature"] = weights["fusion_head.temperature"] * torch.nan
    save_file(weights, path)
    with pytest.raises(UserError, match=r"not finite, because its training diverged. Train it again with"):
        load_run(copied_run)


def test_files_of_a_run_are_as_readable_as_the_umask_says(tiny_run: Run) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in tiny_run.directory.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path


def test_a_run_is_evaluated_on_another_table(tiny_run: Run, copied_run: Path) -> None:
    table = tiny_run.config.data.val_csv
    evaluate(load_run(copied_run, [f"data.test_csv={table}"]))
    metrics = json.loads((copied_run / "metrics.json").read_text())
    assert metrics["test_csv"] == str(table)
    assert metrics["test"] == metrics["val"]
    assert f"on {table}" in (copied_run / "report.html").read_text()
    assert load_run(copied_run).config.data.test_csv == tiny_run.config.data.test_csv
    assert not list(copied_run.glob(".evaluation-*"))


def test_what_a_run_was_trained_with_cannot_be_set(tiny_run: Run) -> None:
    with pytest.raises(UserError, match=r"only \[data\] and \[limits\] of a trained run can"):
        load_run(tiny_run.directory, ["image.size_px=32"])


# --- divergence -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_frozen", [True, False])
def test_training_that_diverges_stops_and_leaves_no_run(
    tiny_config: Path, tmp_path: Path, is_frozen: bool
) -> None:
    overrides = ["train.lr=1e30", "train.epochs=2", f"train.freeze_backbones={str(is_frozen).lower()}"]
    message = r"training diverged: the (validation )?loss is (nan|inf) in epoch 1; lower train.lr, which"
    with pytest.raises(UserError, match=message):
        train(load_config(tiny_config, overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_number_that_is_not_json_is_never_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert (tmp_path / "metrics.json").read_text() == "{}"
    assert len(list(tmp_path.iterdir())) == 1


# --- labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["food", "art", "food"], "data.labels: found 'food' 2 times"),
        (["food", ""], "data.labels: found ''; a label is not empty"),
        (["food", "art "], "data.labels: found 'art '; a label is not empty and has no space at its ends"),
        (["food", "a\nb"], r"data.labels: found 'a\\nb'; a label has no line break"),
        (["food"], "data.labels: found only 'food'; training needs at least two labels"),
    ],
)
def test_labels_that_no_model_can_have_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_labels(labels, "data.labels")


def test_duplicate_labels_end_a_training_before_anything_is_read(tiny_config: Path, tmp_path: Path) -> None:
    overrides = ["data.train_csv=absent.csv", 'data.labels=["warm", "green", "cold", "warm"]']
    with pytest.raises(UserError, match=r"data\.labels: found 'warm' 2 times"):
        train(load_config(tiny_config, overrides), tmp_path / "run")


def test_only_a_line_feed_ends_a_label(tmp_path: Path) -> None:
    labels = ["a\x0bb", "c\x0cd", "e\x1cf", "g\x85h", "i\u2028j", "k\rl"]
    write_labels(labels, tmp_path / "labels.txt")
    assert read_labels(tmp_path / "labels.txt") == labels


# --- resuming -------------------------------------------------------------------------------------------


def test_another_image_behind_the_same_row_is_noticed(tiny_run: Run, tmp_path: Path) -> None:
    source = Path(tiny_run.config.data.val_csv).parent
    table = Path(shutil.copytree(source, tmp_path / "items")) / "items.csv"

    def digests() -> tuple[str, str]:
        items = read_catalogue(table, labels=None, preprocessors=[tiny_run.preprocessor])
        return digest_items(items, "items"), digest_items(items, "items", reads_images=False)

    before = digests()
    assert digests() == before
    write_picture(table.parent / "1002.png", "green", 7)
    after = digests()
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_a_checkpoint_says_what_has_changed(tmp_path: Path) -> None:
    torch.save({"fingerprint": {"settings": "1", "training items": "2"}}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(UserError, match="belongs to a run with other training items"):
        load_checkpoint(tmp_path, {"settings": "1", "training items": "3"})


def test_a_cut_checkpoint_is_one_message_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_FILE
    torch.save({"fingerprint": {}}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=f"{path}: damaged, .* Delete {tmp_path} to start again"):
        load_checkpoint(tmp_path, {})


def test_a_half_written_checkpoint_is_never_taken_for_a_whole_one(tiny_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / UNFINISHED).mkdir(parents=True)
    (out / UNFINISHED / f"{CHECKPOINT_FILE}.tmp").write_bytes(b"the first half of")
    run = train(load_config(tiny_config, ["train.epochs=1"]), out)
    assert len(json.loads((run.directory / "history.json").read_text())) == 1


def test_a_checkpoint_of_another_config_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / UNFINISHED).mkdir(parents=True)
    torch.save({"fingerprint": {"settings": "others"}}, out / UNFINISHED / CHECKPOINT_FILE)
    with pytest.raises(UserError, match="belongs to a run with other settings and labels and "):
        train(load_config(tiny_config, ["train.epochs=1"]), out)
