"""A run is exported without the data that it was trained with, and where its items have one modality only."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from diptych.analysis.ablation import ablate, measure_baselines, variants
from diptych.analysis.ablation_report import balance_table, plot_ablation, score_table
from diptych.config.loader import load_config
from diptych.data.catalogue import read_catalogue
from diptych.data.examples import (
    EXAMPLES_FILE,
    MAX_EXAMPLES,
    Example,
    as_served,
    choose_examples,
    complete_pairs,
    read_examples,
)
from diptych.evaluation.evaluate import evaluate
from diptych.export.export import export
from diptych.runs.run import Run, load_run
from diptych.train.train import train
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Limits, strip_metadata


def write_with(column: str, tables: Sequence[Path], to: Path) -> list[Path]:
    """The rows that have this column, with the other one emptied."""
    other = {"image_path": "description", "description": "image_path"}[column]
    written = []
    for table in tables:
        shutil.copytree(table.parent, to / table.parent.name)
        with table.open(newline="") as file:
            rows = [{**row, other: ""} for row in csv.DictReader(file) if row[column]]
        written.append(to / table.parent.name / "items.csv")
        with written[-1].open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return written


@pytest.mark.parametrize(("column", "absent"), [("description", "an image"), ("image_path", "a text")])
def test_a_run_of_one_modality_is_evaluated_and_exported_without_its_data(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, absent: str
) -> None:
    data = load_config(tiny_config).data
    tables = [Path(str(table)) for table in (data.train_csv, data.val_csv, data.test_csv)]
    splits = write_with(column, tables, tmp_path / "data")
    overrides = [
        f"data.{name}_csv={path}" for name, path in zip(("train", "val", "test"), splits, strict=True)
    ]
    config = load_config(tiny_config, ["train.epochs=1", *overrides])
    configs = {name: variants(config)[name] for name in ("concat", "picture alone", "words alone")}

    results = ablate(configs, tmp_path / "ablation", seeds=[0])
    run = load_run(tmp_path / "ablation" / "concat-0")
    baselines = measure_baselines(run)
    assert ("TF-IDF, logistic regression" in baselines) is (column == "description")
    assert score_table(results, baselines).row_count == len(configs) + len(baselines)
    assert balance_table(results, own="concat").row_count == 3
    plot_ablation(results, baselines, tmp_path / "ablation.png")

    shutil.rmtree(tmp_path / "data")
    _, gated = export(run, tmp_path / "model_repository")
    assert gated.parity[-1].max_difference < 1e-5
    assert (
        f"no validation item has {absent}: answers to {absent} alone mean nothing" in capsys.readouterr().err
    )
    golden = json.loads((tmp_path / "model_repository/classifier/1/golden.json").read_text())["requests"]
    assert {(bool(each["image"]), bool(each["text"])) for each in golden} == {
        (True, True),
        (True, False),
        (False, True),
    }
    with pytest.raises(UserError, match="cannot read it: No such file"):
        evaluate(run)


def test_an_example_is_what_the_model_sees(tiny_run: Run) -> None:
    preprocessor = tiny_run.preprocessor
    items = read_catalogue(tiny_run.config.data.val_csv, labels=None, preprocessors=[preprocessor])
    examples = read_examples(tiny_run.directory)
    assert examples == choose_examples(items, preprocessor)
    for item, example in zip(items, examples, strict=True):
        assert example.text == item.text
        seen, kept = preprocessor.pixels(item.read_image()), preprocessor.pixels(example.image)
        assert (seen is None and kept is None) or np.array_equal(seen, kept)


def test_examples_are_spread_over_the_table(tiny_run: Run) -> None:
    items = read_catalogue(tiny_run.config.data.val_csv, labels=None, preprocessors=[tiny_run.preprocessor])
    many = [item for item in items if item.image is None] * 200
    many[-1] = items[1]
    assert len(choose_examples(many, tiny_run.preprocessor)) == MAX_EXAMPLES


def test_examples_are_in_a_format_that_the_server_takes(tiny_run: Run) -> None:
    image = next(example.image for example in read_examples(tiny_run.directory) or [] if example.image)
    examples = [Example(image, "a lake"), Example(b"", "a lake " * 20_000)]
    strict = tiny_run.preprocessor.within(Limits(max_png_pixels=0))
    (served,) = as_served(examples, strict)
    assert strip_metadata(served.image).format == "WebP"
    assert np.array_equal(strict.pixels(served.image), tiny_run.preprocessor.pixels(image))


def test_images_and_texts_of_different_items_make_pairs_where_no_item_has_both() -> None:
    examples = [Example(b"1", ""), Example(b"2", ""), Example(b"", "a"), Example(b"", "b"), Example(b"", "c")]
    assert complete_pairs(examples, 32, 8) == [(b"1", "a"), (b"2", "b"), (b"1", "c")]


def test_damaged_examples_say_what_to_do(tiny_run: Run, tmp_path: Path) -> None:
    path = tmp_path / EXAMPLES_FILE
    path.write_bytes((tiny_run.directory / EXAMPLES_FILE).read_bytes()[:100])
    with pytest.raises(UserError, match=f"{path}: damaged .* diptych export RUN --set data.val_csv=FILE"):
        read_examples(tmp_path)


def test_a_run_without_examples_is_exported_from_a_table(tiny_config: Path, tmp_path: Path) -> None:
    run = train(load_config(tiny_config, ["train.epochs=1"]), tmp_path / "run")
    (run.directory / EXAMPLES_FILE).unlink()
    moved = load_run(run.directory, ["data.val_csv=absent.csv"])
    with pytest.raises(UserError, match=r"absent\.csv: cannot read it"):
        export(moved, tmp_path / "model_repository")
    assert not (tmp_path / "model_repository").exists()
