"""Checks before loading that the files are the exported ones. TorchScript and model.py are code: a file
that is not in the manifest, or differs from it, must not run.

Configs are not checked, because releases and settings change them. They decide what Triton loads, so only the
user who serves should be able to write them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from diptych_serving.errors import UserError
from diptych_serving.repository.files import read_bytes
from diptych_serving.repository.journal import undo_interrupted
from diptych_serving.repository.layout import (
    ENSEMBLE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    STEPS,
    loaded_versions,
    read_manifest,
    serving_version,
    verify_checksums,
)
from diptych_serving.terminal import say

BYTECODE = "__pycache__"


def verify_version(repository: Path, version: int, public_key: Path | None = None) -> dict[str, Any]:
    """Check the signature and the checksums, and that the manifest lists every file of the version.

    public_key  file with the key of the required signature; None: no signature is required
    returns     the manifest
    raises      UserError
    """
    read_manifest(repository, version)  # names the versions that there are, where this is none
    path = repository / ENSEMBLE / str(version) / MANIFEST_FILE
    content = read_bytes(path)
    if public_key is not None:
        from diptych_serving.repository.signing import (
            require_signature,  # needs a library that serving does without
        )

        require_signature(path, content, public_key)
    manifest: dict[str, Any] = json.loads(content)
    verify_checksums(repository, manifest)
    for model in (ENSEMBLE, *STEPS):
        directory = repository / model / str(version)
        _remove_bytecode(directory, must_succeed=public_key is not None)
        _refuse_unlisted(repository, directory, manifest)
    return manifest


def verify_loaded(repository: Path, public_key: Path | None = None) -> None:
    """Undo an interrupted release, then verify all versions that a starting server would load.

    raises  UserError
    """
    undo_interrupted(repository, say)
    for version in sorted({serving_version(repository), *loaded_versions(repository)}):
        verify_version(repository, version, public_key)


def _refuse_unlisted(repository: Path, directory: Path, manifest: dict[str, Any]) -> None:
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(repository))
        is_ours = path.name in (MANIFEST_FILE, SIGNATURE_FILE) or path.parent.name == BYTECODE
        if path.is_file() and not is_ours and name not in manifest["sha256"]:
            raise UserError(
                f"{path}: is not in the manifest of version {manifest['version']}, "
                "and may be code. Remove it, or export again"
            )


def _remove_bytecode(directory: Path, *, must_succeed: bool) -> None:
    """Remove cached bytecode: Python would run it in place of the checked source.

    must_succeed  raise UserError if it cannot be removed, also on a read-only file system
    """
    for path in sorted(directory.rglob(BYTECODE)):
        try:
            shutil.rmtree(path)
        except OSError as error:
            if must_succeed:
                raise UserError(f"{path}: {error.strerror}; remove it, because Python would run it") from None
