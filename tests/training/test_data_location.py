"""Locations: local paths and fsspec URLs, and what lies beside them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import fsspec
import pytest

from diptych.config.loader import load_config, save_config
from diptych.location import Location
from diptych_serving.errors import UserError


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [
        ("/data/items.csv", "a.png", "/data/a.png"),
        ("/data/items.csv", "/elsewhere/a.png", "/elsewhere/a.png"),
        ("/data/items.csv", "s3://bucket/a.png", "s3://bucket/a.png"),
        ("/data/items.csv", "odd::name.png", "/data/odd::name.png"),
        ("s3://bucket/items.csv", "a.png", "s3://bucket/a.png"),
        ("s3://bucket/tables/items.csv", "../pictures/a.png", "s3://bucket/pictures/a.png"),
        ("s3://bucket/items.csv", "gs://other/a.png", "gs://other/a.png"),
        ("s3://bucket/items.csv", "/local/a.png", "/local/a.png"),
        ("memory://items.csv", "a.png", "memory://a.png"),
        ("file:///data/items.csv", "a.png", "file:///data/a.png"),
        ("zip://x/items.csv::s3://b/all.zip", "a.png", "zip://x/a.png::s3://b/all.zip"),
        ("simplecache::s3://b/items.csv", "a.png", "simplecache::s3://b/a.png"),
    ],
)
def test_what_a_table_names_is_looked_for_beside_it(table: str, name: str, expected: str) -> None:
    assert Location(table).beside(name) == expected


@pytest.mark.parametrize(
    "location", ["/data/train.parquet", "s3://bucket/x/train.parquet", "zip://x/train.parquet::/data/all.zip"]
)
def test_a_location_has_a_name(location: str) -> None:
    assert Location(location).name == "train.parquet"


def test_a_local_path_becomes_absolute_and_a_url_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Location.resolve("items.csv") == str(tmp_path / "items.csv")
    assert Location.resolve("~/items.csv") == str(Path.home() / "items.csv")
    assert Location.resolve("s3://bucket/items.csv") == "s3://bucket/items.csv"


def test_a_config_keeps_urls_and_reads_back_equal(tmp_path: Path) -> None:
    written = tmp_path / "run.toml"
    written.write_text(
        '[data]\ntrain_csv = "s3://bucket/train.parquet"\nval_csv = "val.csv"\ncheck_images = false\n'
        '[image]\nbackbone = "timm:test_efficientnet"\n[text]\nbackbone = "bert-base-uncased"\n'
    )
    config = load_config(written)
    assert config.data.train_csv == "s3://bucket/train.parquet"
    assert config.data.val_csv == str(Path.cwd() / "val.csv")
    assert config.data.check_images is False
    save_config(config, tmp_path / "resolved.toml")
    assert load_config(tmp_path / "resolved.toml") == config
    with pytest.raises(UserError, match=r"expected a path or a URL, got 3 .*\$\.data\.val_csv"):
        load_config(written, ["data.val_csv=3"])


def test_reads_from_memory_from_an_archive_and_from_disk(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/location/a.bin", b"memory")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("in/a.bin", b"archive")
    (tmp_path / "a.bin").write_bytes(b"disk")
    places = ["memory://location/a.bin", f"zip://in/a.bin::{tmp_path}/all.zip", str(tmp_path / "a.bin")]
    assert [Location(place).read_bytes() for place in places] == [b"memory", b"archive", b"disk"]
    for place in places:
        with Location(place).open() as file:
            assert file.read() == Location(place).read_bytes()


def test_a_changed_file_is_another_version(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for location in (f"{tmp_path}/a.bin", "memory://location/version.bin"):
        versions = set()
        for content in (b"one", b"one and two"):
            if location.startswith("memory"):
                memory.pipe("/location/version.bin", content)
            else:
                Path(location).write_bytes(content)
            versions |= {Location(location).version(), Location(location).version()}
        assert len(versions) == 2


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("memory://location/gone.png", r"No such file or directory: 'memory://location/gone\.png'"),
        ("nowhere://bucket/a.png", r"Protocol not known: nowhere"),
    ],
)
def test_whatever_a_filesystem_raises_is_an_os_error(location: str, complaint: str) -> None:
    with pytest.raises(OSError, match=complaint):
        Location(location).read_bytes()
    with pytest.raises(OSError, match=complaint), Location(location).open():
        pass


def test_a_location_pickles_as_small_as_a_string() -> None:
    location = Location("s3://bucket/a.png")
    copy = pickle.loads(pickle.dumps([location] * 1000))  # noqa: S301
    assert copy[0] == location
    assert type(copy[0]) is Location
    assert len(pickle.dumps([Location(f"s3://bucket/{i}.png") for i in range(1000)])) < 60_000
