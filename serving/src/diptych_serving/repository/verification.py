"""Proves that what is about to be loaded is what was exported. TorchScript and model.py are code: a file that
no manifest lists, or not as it is, is not run.

Configs are not covered: releases and settings change them. A user who may write them decides what Triton
loads, so they belong to the user who serves.
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
    """Check signature, checksums, and that no file of the version is missing from the manifest.

    public_key  of the signature that is required; None: none is
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
    """Undo a release that was interrupted, then verify all versions that a starting server would load.

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
                f"{path}: is not in the manifest of version {manifest['version']}: nothing is known of it, "
                "and it may be code. Remove it, or export again"
            )


def _remove_bytecode(directory: Path, *, must_succeed: bool) -> None:
    """Python runs what it finds there in place of the source that the checksum is of.

    must_succeed  also on a read-only file system, which may well hold what an earlier server left there
    """
    for path in sorted(directory.rglob(BYTECODE)):
        try:
            shutil.rmtree(path)
        except OSError as error:
            if must_succeed:
                raise UserError(f"{path}: {error.strerror}; remove it, for Python would run it") from None
