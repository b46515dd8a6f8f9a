"""The cache: made again where it is damaged, left out where it cannot be written, bounded in size."""

from __future__ import annotations

import dataclasses
import os
import sys
from itertools import cycle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from diptych.cli.main import main as cli
from diptych.data.catalogue import read_catalogue
from diptych.data.embedding_cache import ITEMS_OF_A_PART, embed_items_once
from diptych.data.items import Item
from diptych.evaluation.predict import read_item
from diptych.models.classifier import Classifier, Embeddings
from diptych.runs.run import Run, load_run
from diptych_serving import cache
from diptych_serving.errors import UserError


@pytest.fixture
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def items(tiny_run: Run) -> list[Item]:
    return read_catalogue(tiny_run.config.data.val_csv, labels=None, preprocessors=[tiny_run.preprocessor])


def embed(run: Run, items: list[Item]) -> Embeddings:
    return embed_items_once(run.model, items, run.preprocessor, title="items", num_workers=0)


def is_same(one: Embeddings, other: Embeddings) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_a_damaged_file_is_made_again_and_named(
    tiny_run: Run, items: list[Item], cache_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings = embed(tiny_run, items)
    (file,) = (cache_root / "embeddings").iterdir()
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 100):
        file.write_bytes(damaged)
        assert is_same(embed(tiny_run, items), embeddings)
        assert f"{file}: damaged, so it is made again" in capsys.readouterr().err
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_one_warning(
    tiny_run: Run, items: list[Item], cache_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_root.write_text("a file")
    assert is_same(embed(tiny_run, items), embed(tiny_run, items))
    assert capsys.readouterr().err.count(f"{cache_root}/embeddings: nothing can be kept there") == 1


class Interrupted(nn.Module):
    """A backbone that is interrupted after some batches. Counts those that it embeds."""

    def __init__(self, backbone: nn.Module, batches: int | None) -> None:
        super().__init__()
        self.backbone, self.left, self.num_items = backbone, batches, 0

    def forward(self, pixels: Tensor) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        self.num_items += len(pixels)
        embedded: Tensor = self.backbone(pixels)
        return embedded


def test_embedding_keeps_what_it_has_when_it_is_interrupted(
    tiny_run: Run, items: list[Item], cache_root: Path
) -> None:
    with_images = [item for item in items if item.image]
    count = 2 * ITEMS_OF_A_PART + 40
    many = [dataclasses.replace(item, text=str(i)) for i, item in zip(range(count), cycle(with_images))]
    model: Classifier = load_run(tiny_run.directory).model
    counting = Interrupted(model.image_encoder.backbone, batches=ITEMS_OF_A_PART // 32 + 3)
    model.image_encoder.backbone = counting

    def embed_many() -> Embeddings:
        return embed_items_once(model, many, tiny_run.preprocessor, title="items", num_workers=0)

    with pytest.raises(KeyboardInterrupt):
        embed_many()
    counting.left, counting.num_items = None, 0
    embeddings = embed_many()
    assert counting.num_items == len(many) - ITEMS_OF_A_PART
    period = len(with_images)
    assert torch.allclose(embeddings.image[:period], embeddings.image[10 * period : 11 * period], atol=1e-5)


def test_splits_of_the_same_items_share_their_embeddings(
    tiny_run: Run, items: list[Item], cache_root: Path
) -> None:
    model: Classifier = load_run(tiny_run.directory).model
    counting = Interrupted(model.image_encoder.backbone, batches=None)
    model.image_encoder.backbone = counting
    whole = embed_items_once(model, items, tiny_run.preprocessor, title="items", num_workers=0)
    counting.num_items = 0
    order = [5, 2, 2, 20]
    some = embed_items_once(
        model, [items[row] for row in order], tiny_run.preprocessor, title="items", num_workers=0
    )
    assert counting.num_items == 0
    assert is_same(some, whole.rows(torch.tensor(order)))


def test_what_was_not_used_for_longest_goes_first(cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [cache_root / "embeddings" / name for name in ("a", "b", "c", "d")]
    files[0].parent.mkdir(parents=True)
    for age, path in enumerate(reversed(files)):
        path.write_bytes(bytes(1000))
        os.utime(path, (1e9 - age, 1e9))
    cache.use(files[0])
    cache.hold(files[1])
    monkeypatch.setenv("DIPTYCH_CACHE_GB", "2e-6")
    cache.keep_within_limit()
    assert [path.name for path in files if path.exists()] == ["a", "b"]
    assert cache.clear() == [files[1]]

    monkeypatch.setenv("DIPTYCH_CACHE_GB", "plenty")
    with pytest.raises(UserError, match="DIPTYCH_CACHE_GB=plenty: expected a number of gigabytes"):
        cache.keep_within_limit()


def test_the_command_shows_and_clears(
    cache_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache_root / "embeddings").mkdir(parents=True)
    (cache_root / "embeddings" / "x").write_bytes(bytes(1_500_000))

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["diptych", "cache", *arguments])
        with pytest.raises(SystemExit):
            cli()
        return capsys.readouterr().out

    shown = run()
    assert f"{cache_root}, at most 20 GB" in shown
    assert "embeddings       1 files        1.5 MB" in shown
    assert "embeddings       0 files        0.0 MB" in run("--clear")


def test_everything_is_kept_in_one_folder(cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_root() == cache_root
    monkeypatch.delenv("DIPTYCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_directory("libpython") == Path("/somewhere/diptych/libpython")


@pytest.fixture
def parquet(tiny_run: Run, tmp_path: Path) -> Path:
    pictures = sorted(Path(tiny_run.config.data.val_csv).parent.glob("*.png"))[:6]
    table = {
        "image": [picture.read_bytes() for picture in pictures],
        "description": ["a lake"] * 6,
        "category": ["cold"] * 6,
    }
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table(table), path)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(("kind", "damage"), [("bin", cut), ("bin", overwrite), ("npy", cut)])
def test_a_damaged_copy_of_images_is_made_again_and_no_row_is_blamed(
    tiny_run: Run, parquet: Path, cache_root: Path, capsys: pytest.CaptureFixture[str], kind: str, damage
) -> None:
    def read() -> list[bytes]:
        items = read_catalogue(parquet, labels=None, preprocessors=[tiny_run.preprocessor])
        return [item.read_image() for item in items]

    images = read()
    assert read() == images
    assert not capsys.readouterr().err
    (file,) = (cache_root / "pictures").glob(f"*.{kind}")
    damage(file)
    assert read() == images
    assert f"{file}: damaged, so it is made again" in capsys.readouterr().err
    assert read_item(tiny_run, images[0], "").image_present.all()
