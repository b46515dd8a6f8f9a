"""Tables larger than memory: what is held, what workers are sent, and what is found only when it is read."""

from __future__ import annotations

import csv
import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models

from diptych.config.sections import DataConfig
from diptych.data.catalogue import labels_of, read_catalogue, read_split
from diptych.data.dataset import ItemDataset, load_batches
from diptych.data.items import Item
from diptych.location import Location
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec, Preprocessor
from tests.helpers.repository_files import tiny_tokenizer

SPEC = PreprocessingSpec(image_size_px=32, max_tokens=16)
READER = Preprocessor(SPEC, tiny_tokenizer().to_str())
MB = 10**6

# In a process of its own, whose largest memory is what the reading took. VmHWM, because what getrusage tells
# begins with the peak of the process that started this one.
READ = """
import json, re, sys
from pathlib import Path
from diptych.data.catalogue import read_catalogue
from diptych_serving.preprocessing import PreprocessingSpec, Preprocessor

def peak_bytes():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak_bytes()
spec = PreprocessingSpec(image_size_px=32, max_tokens=16)
preprocessor = Preprocessor(spec, sys.argv[2])
items = read_catalogue(sys.argv[1], labels=None, preprocessors=[preprocessor], check_images=False)
growth = peak_bytes() - before
print(json.dumps([len(items), len(items[-1].read_image()), growth]))
"""


def write_csv(path: Path, rows: Sequence[tuple[str, str, str]]) -> Location:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_path", "description", "category"), *rows])
    return Location(path)


def test_pictures_in_a_column_are_never_all_in_memory(tmp_path: Path) -> None:
    num_rows, cell_bytes = 20_000, 10_000
    rng = np.random.default_rng(0)
    texts = {"description": ["words"] * num_rows, "category": ["art"] * num_rows}
    pictures = [rng.bytes(cell_bytes) for _ in range(num_rows)]
    pq.write_table(pa.table({"image": pictures, **texts}), tmp_path / "big.parquet")  # one group of rows
    assert (tmp_path / "big.parquet").stat().st_size > 200 * MB
    growth = []
    for _ in ("copies the pictures", "finds them copied"):
        command = [sys.executable, "-c", READ, str(tmp_path / "big.parquet"), tiny_tokenizer().to_str()]
        environment = {**os.environ, "DIPTYCH_CACHE": str(tmp_path / "cache")}
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        num_items, num_bytes, grown_bytes = json.loads(process.stdout)
        assert (num_items, num_bytes) == (num_rows, cell_bytes)
        growth.append(grown_bytes / MB)
    # pyarrow itself takes 12; a page of 1,024 pictures, compressed or not, 20; rows without pictures 10.
    # Its allocator keeps more on some days than on others: 85 to 104, for 10,000 and 30,000 rows alike.
    assert growth[0] < 150
    assert growth[1] < 60


def test_a_row_takes_little_memory_and_little_to_send(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "items.csv", [(f"{i:06}.png", f"words {i}", "art") for i in range(2000)])
    items = read_catalogue(table, labels=None, preprocessors=[READER], check_images=False)
    assert len(pickle.dumps(items)) / len(items) < 100 + len(str(tmp_path))
    assert not hasattr(items[0], "__dict__")
    assert items[0].category is items[-1].category


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_items_read_their_pictures_in_another_process(tmp_path: Path, method: str) -> None:
    (tmp_path / "a.png").write_bytes(b"by path")
    cells = [{"bytes": b"in a cell", "path": None}, {"bytes": None, "path": "a.png"}, None]
    columns = {"image": cells, "description": ["words"] * 3, "category": ["art"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    items = read_catalogue(
        tmp_path / "items.parquet", labels=None, preprocessors=[READER], check_images=False
    )
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        assert list(pool.map(Item.read_image, items)) == [b"in a cell", b"by path", b""]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("picture", "complaint"),
    [
        (
            "gone.png",
            r"items\.csv: line 3: cannot read its image .*/gone\.png: .*No such file or directory: .*",
        ),
        (
            "notes.png",
            r"items\.csv: line 3: preprocess: image: found 12 bytes in no known format; accepted: .*",
        ),
    ],
)
def test_unchecked_a_bad_image_is_named_by_its_row_when_it_is_read(
    tmp_path: Path, picture: str, complaint: str, num_workers: int
) -> None:
    (tmp_path / "notes.png").write_text("not a pictur")
    table = write_csv(tmp_path / "items.csv", [("", "fine", "art"), (picture, "bad", "art")])
    items = read_catalogue(table, labels=["art"], preprocessors=[READER], check_images=False)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    dataset = ItemDataset(items, ["art"], Preprocessor(SPEC, tokenizer.to_str()))
    with pytest.raises(UserError) as caught:
        list(load_batches(dataset, num_workers, batch_size=1))
    caught.match(rf"^{tmp_path}/{complaint}$")
    assert "Traceback" not in str(caught.value)
    traceback.clear_frames(caught.tb)  # else the garbage collector waits 10 s for the workers


def test_other_faults_are_found_though_images_are_not_checked(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "items.csv", [("gone.png", "words", "art"), ("gone.png", "words", "")])
    with pytest.raises(UserError, match=r"1 of 2 rows cannot be used: 1 empty category\n  line 3"):
        read_catalogue(table, labels=None, preprocessors=[READER], check_images=False)


@pytest.mark.parametrize(
    ("listed", "known", "origin"),
    [
        (None, "art, tools", r"data\.train_csv \(.*/train\.csv\)"),
        (["tools", "art"], "tools, art", r"data\.labels"),
    ],
)
def test_a_category_that_training_never_saw_is_named_with_where_labels_come_from(
    tmp_path: Path, listed: list[str] | None, known: str, origin: str
) -> None:
    train = write_csv(tmp_path / "train.csv", [("", "a brush", "art"), ("", "a saw", "tools")])
    val = write_csv(tmp_path / "val.csv", [("", "a hull", "boats"), ("", "a pen", "art")])
    data = DataConfig(train_csv=train, val_csv=val, labels=listed)
    labels = data.labels or labels_of(
        read_split(data.train_csv, data, labels=data.labels, preprocessor=READER)
    )
    complaint = (
        rf"val\.csv: 1 of 2 rows .*\n  line 2: unknown category: 'boats'\nKnown categories: {known}\. "
    )
    with pytest.raises(UserError, match=rf"{complaint}They are those of {origin}\.\n"):
        read_split(data.val_csv, data, labels=labels, preprocessor=READER)


def test_a_config_decides_what_is_checked_and_skipped(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "items.csv", [("gone.png", "words", "art"), ("", "", "art")])
    data = DataConfig(train_csv=table, val_csv=table, check_images=False, skip_bad_rows=True)
    assert [item.line for item in read_split(table, data, labels=None, preprocessor=READER)] == [2]
