"""What `diptych serve --tuning` serves: a repository with other settings and the same files, by links.

A release changes the repository and knows nothing of its copies. So `diptych release` brings the copy of the
server that it talks to up to date before it lets that server load anything.
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
    """Bring it up to date: versions that were added or deleted, and what the configs say now.

    Files that need no change are left alone, because Triton loads again what has changed.
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
        # Newer tritonservers refuse a label file that a link leads out of the model's directory.
        shutil.copytree(path, own)
    else:
        own.symlink_to(path)
