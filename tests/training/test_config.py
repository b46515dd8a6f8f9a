"""The config tree: read, checked, overridden, saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.config.loader import load_config, save_config
from diptych_serving.errors import UserError
from tests.helpers.small_pairs import save_pair

CONFIGS = Path(__file__).parents[2] / "training" / "configs"

MINIMAL = """
[data]
train_csv = "train.csv"
val_csv = "val.csv"
[image]
backbone = "timm:tf_efficientnet_lite0"
[text]
backbone = "bert-base-uncased"
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads(path: Path, tmp_path: Path) -> None:
    pairs = {"clip": "clip", "siglip": "siglip"}  # their directory is read with the config
    copy = save_pair(tmp_path, pairs[path.stem], size_px=224) if path.stem in pairs else None
    assert load_config(path, [f"pair.backbone={copy}"] if copy else []).data.test_csv


def test_values_set_on_the_command_line_win(minimal: Path) -> None:
    config = load_config(
        minimal, ["train.epochs=20", "fusion.kind=attention", "data.test_csv=/data/test.csv"]
    )
    assert config.train.epochs == 20
    assert config.fusion.kind == "attention"
    assert config.data.test_csv == "/data/test.csv"


def test_the_resolved_config_reads_back_equal(minimal: Path, tmp_path: Path) -> None:
    config = load_config(minimal, ["train.lr=3e-4"])
    save_config(config, tmp_path / "resolved.toml")
    assert load_config(tmp_path / "resolved.toml") == config


def test_an_unknown_key_names_the_nearest_known_one(minimal: Path) -> None:
    with pytest.raises(
        UserError, match=r"minimal.toml \[image\]: unknown key 'sizepx'. Did you mean 'size_px'?"
    ):
        load_config(minimal, ["image.sizepx=224"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=0", r">= 1.*\$\.train\.epochs"),
        ("train.epochs=many", r"Expected `int`, got `str`.*\$\.train\.epochs"),
        ("fusion.kind=sum", r"Invalid enum value 'sum'.*\$\.fusion\.kind"),
        ("train.drop_text=1.5", r"<= 1.0.*\$\.train\.drop_text"),
        ("train", "expected section.key=value"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(minimal, [override])


def test_a_shipped_config_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder of that name is in nobody's way
    assert load_config(Path("quickstart")) == load_config(CONFIGS / "quickstart.toml")


@pytest.mark.parametrize("name", ["absent.toml", "quikstart", "folder/quickstart"])
def test_a_missing_config_names_those_that_there_are(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no such file.*: article, .*quickstart"):
        load_config(Path(name))
