"""The limits of images and texts: where they are set, and where each of the two sets holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from diptych.analysis.comparison.asking import compare_runs
from diptych.cli.main import app
from diptych.config.loader import load_config, save_config
from diptych.config.sections import TrainingLimits
from diptych.evaluation.predict import predict
from diptych.export.export import export
from diptych.runs.run import Run, load_run
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import LIMIT_NAMES, Limits, PreprocessingSpec
from tests.helpers.catalogues import make_catalogue

SPEC = PreprocessingSpec(image_size_px=64, max_tokens=8)


def test_training_is_nowhere_stricter_than_serving() -> None:
    assert SPEC.within(TrainingLimits()).stricter(Limits()) == SPEC.within(Limits())


def test_of_two_limits_the_lower_holds_each_for_itself() -> None:
    one, other = SPEC.within(Limits(max_png_pixels=5)), Limits(max_gif_pixels=7)
    assert one.stricter(other) == SPEC.within(Limits(max_png_pixels=5, max_gif_pixels=7))


def test_a_limit_of_the_config_is_kept_with_the_run(tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(
        tiny_config, ["limits.training.max_png_pixels=77", "limits.serving.max_bmp_pixels=0"]
    )
    assert config.spec.max_png_pixels == 77
    assert config.spec.max_jpeg_pixels == TrainingLimits().max_jpeg_pixels
    assert config.limits.serving.formats == ["JPEG", "PNG", "WebP", "GIF"]
    save_config(config, tmp_path / "saved.toml")
    assert load_config(tmp_path / "saved.toml") == config


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("limits.serving.max_png_pixel=1", r"unknown key 'max_png_pixel'\. Did you mean 'max_png_pixels'\?"),
        (
            "limits.serving.max_png_pixels=-1",
            r"limits\.serving\.max_png_pixels: found -1; accepted: 0 or more",
        ),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(tiny_config: Path, override: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_config(tiny_config, [override])


def test_limits_without_any_format_are_refused(tiny_config: Path) -> None:
    none = [f"limits.serving.{name}=0" for name in LIMIT_NAMES if name.endswith("_pixels")]
    with pytest.raises(UserError, match=r"limits\.serving: every format is refused; accepted: one above 0"):
        load_config(tiny_config, none)


def test_a_run_reads_what_its_server_refuses_and_exports_the_servers_limits(
    tiny_run: Run, tmp_path: Path
) -> None:
    """One of the validation items is a TIFF, another a PNG beyond the server's limit."""
    table = make_catalogue(tmp_path / "val", 36)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "val/1.png", "TIFF")
    Image.new("L", (5000, 3000)).save(tmp_path / "val/2.png")
    data = dataclasses.replace(tiny_run.config.data, val_csv=str(table))
    run = dataclasses.replace(tiny_run, config=dataclasses.replace(tiny_run.config, data=data))
    assert predict(run, (tmp_path / "val/1.png").read_bytes(), "")
    export(run, tmp_path / "repository")
    exported = json.loads((tmp_path / "repository/preprocess/1/preprocessing.json").read_text())
    assert {name: exported[name] for name in LIMIT_NAMES} == dataclasses.asdict(Limits())


def test_a_run_that_was_saved_without_limits_is_read(tiny_run: Run) -> None:
    """Those of its config hold, whatever stands beside its weights."""
    assert load_run(tiny_run.directory).preprocessor.spec == tiny_run.config.spec
    found = PreprocessingSpec.from_json('{"image_size_px": 64, "max_tokens": 8, "max_costly_pixels": 5}')
    assert found == SPEC


def test_compare_takes_a_table_without_a_column_of_categories(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("image_path,description\n,a leaf and a garden\n,fire\n")
    compared = compare_runs(tiny_run, tiny_run, tmp_path / "items.csv")
    assert [item.category for item in compared.items] == ["", ""]
    assert compared.is_same.all()


def test_compare_takes_what_both_runs_take(tiny_run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    (tmp_path / "items.csv").write_text("image_path,description\na.png,a leaf\n,fire\n")
    strict = dataclasses.replace(
        tiny_run, preprocessor=tiny_run.preprocessor.within(TrainingLimits(max_png_pixels=899))
    )
    for pair in ((tiny_run, strict), (strict, tiny_run)):
        with pytest.raises(UserError, match="found 30 x 30 pixels in a PNG; accepted: at most 899 pixels"):
            compare_runs(*pair, tmp_path / "items.csv")
        assert len(compare_runs(*pair, tmp_path / "items.csv", skip_bad_rows=True).items) == 1


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_an_empty_image_file_is_refused_where_text_alone_would_be_answered(
    tiny_run: Run, tmp_path: Path, command: str
) -> None:
    (tmp_path / "empty.jpg").touch()
    arguments = [command, str(tiny_run.directory), "--image", str(tmp_path / "empty.jpg"), "--text", "a leaf"]
    with pytest.raises(
        UserError, match=r"--image .*empty\.jpg: found an empty file; accepted: an image file"
    ):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
