"""Workers load batches where /dev/shm is smaller than one of them, as in containers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SMALL = "mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
# A batch is 32 * 3 * 512 * 512 bytes, 25 MB.
LOAD = """
import sys
from diptych.data.dataset import ItemDataset, load_batches
from diptych.data.items import Item
from diptych.location import Location
from diptych_serving.preprocessing import Preprocessor, PreprocessingSpec
from tests.helpers.repository_files import tiny_tokenizer

item = Item(table=Location("t.csv"), line=2, image=Location(sys.argv[1]), text="a cat", category="art")
preprocessor = Preprocessor(PreprocessingSpec(image_size_px=512, max_tokens=8), tiny_tokenizer().to_str())
dataset = ItemDataset([item] * 96, ["art"], preprocessor)
batches = list(load_batches(dataset, 2, batch_size=32))
assert [tuple(inputs.pixel_values.shape) for inputs, _ in batches] == [(32, 3, 512, 512)] * 3
print("loaded")
"""


def test_workers_need_no_shared_memory(tiny_config: Path) -> None:
    if subprocess.run([*NAMESPACE, f"{SMALL}true"], capture_output=True, check=False).returncode:
        pytest.skip("a small /dev/shm needs user namespaces, which this machine does not allow")
    picture = tiny_config.parent / "test/2001.png"
    done = subprocess.run(
        [*NAMESPACE, f'{SMALL}"$@"', "sh", sys.executable, "-c", LOAD, picture],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "loaded\n", done.stderr
