"""The copy that `diptych serve --tuning` serves: other settings, and links to the same files.

A release changes the repository, not its copies. So `diptych release` updates the copy of a server before
that server loads anything.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import msgspec

from diptych_serving.repository.files import read_text, replace_text
from diptych_serving.repository.layout import CONFIG_FILE, ENSEMBLE
from diptych_serving.repository.settings import Settings, edit_config

DIRECTORY = "tuned_repository"
SOURCE_FILE = "source.json"


def make_copy(settings: Settings, repository: Path, to: Path) -> None:
    """Write the copy into a directory that does not exist."""
    to.mkdir(parents=True)
    source = {"repository": str(repository.resolve()), "settings": dataclasses.asdict(settings)}
    (to / SOURCE_FILE).write_text(json.dumps(source), "utf-8")
    update_copy(to)


def update_copy(copy: Path) -> None:
    """Update the copy: versions that were added or deleted, and the configs.

    Unchanged files are not written, because Triton reloads changed ones.
    """
    source = json.loads(read_text(copy / SOURCE_FILE))
    settings = msgspec.convert(source["settings"], Settings)
    for model in sorted(path for path in Path(source["repository"]).iterdir() if path.is_dir()):
        own = copy / model.name
        own.mkdir(exist_ok=True)
        wanted = {path.name for path in model.iterdir()}
        for path in own.iterdir():
            if path.name not in wanted:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in model.iterdir():
            _take_over(path, own / path.name, settings)


def _take_over(path: Path, own: Path, settings: Settings) -> None:
    if path.name == CONFIG_FILE:
        text = edit_config(read_text(path), settings, path)
        if not own.is_file() or read_text(own) != text:
            replace_text(own, text)
    elif own.is_symlink() or own.exists():
        return
    elif own.parent.name == ENSEMBLE and path.is_dir():
        # Newer tritonservers refuse a linked label file (docs/triton.md, 10).
        shutil.copytree(path, own)
    else:
        own.symlink_to(path)
