"""A rewritten file keeps mode and owner, a link stays a link; other users' files are no traceback."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych_serving.errors import UserError
from diptych_serving.repository.files import read_text, replace_text
from diptych_serving.repository.layout import CONFIG_FILE, serving_version, write_activations, write_loaded
from diptych_serving.repository.settings import Settings, apply_settings
from diptych_serving.repository.verification import verify_loaded
from diptych_serving.server import leftovers
from diptych_serving.server.admin_key import KEY_FILE, AdminKey, find_admin_key
from tests.helpers.repository_files import lay_out_repository

NOBODY, SOMEBODY = 65534, 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user may write in, which pytest's are not."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_under_a_strict_umask_configs_stay_readable_for_the_server(tmp_path: Path) -> None:
    repository = lay_out_repository(tmp_path / "model_repository")
    configs = sorted(repository.glob(f"*/{CONFIG_FILE}"))
    for config, mode in zip(configs, (0o644, 0o664, 0o640, 0o600, 0o444, 0o644), strict=True):
        config.chmod(mode)
    before = [mode_of(config) for config in configs]
    with umask(0o077):
        write_loaded(repository, [1, 2])
        apply_settings(Settings(preprocess_instances=3), repository)
        write_activations(repository, [1])
    assert [mode_of(config) for config in configs] == before
    assert mode_of(repository / "classifier/activations.txt") == mode_of(
        repository / "classifier/config.pbtxt"
    )


def test_a_link_stays_a_link_and_its_target_is_rewritten(tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere/real.txt", tmp_path / "link.txt"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    replace_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["real.txt"]


@needs_root
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("old")
    os.chown(path, SOMEBODY, NOBODY)
    replace_text(path, "new")
    assert (path.stat().st_uid, path.stat().st_gid) == (SOMEBODY, NOBODY)


@needs_root
def test_a_user_who_would_take_a_file_from_its_owner_is_refused(shared: Path) -> None:
    path = shared / "config.pbtxt"
    path.write_text("old")
    os.chown(path, SOMEBODY, SOMEBODY)
    path.chmod(0o664)
    with as_user(NOBODY):
        replace_text(path, "new")  # its owner can still read it
    os.chown(path, SOMEBODY, SOMEBODY)
    path.chmod(0o660)
    with as_user(NOBODY), pytest.raises(UserError, match=r"config.pbtxt: belongs to 12345, .* as its owner"):
        replace_text(path, "newer")
    assert path.read_text() == "new"
    assert [each.name for each in shared.iterdir()] == ["config.pbtxt"]


@needs_root
def test_a_config_that_cannot_be_read_is_one_line(shared: Path) -> None:
    repository = lay_out_repository(shared / "model_repository")
    os.chmod(repository / "preprocess/config.pbtxt", 0o600)
    with as_user(NOBODY):
        assert serving_version(repository) == 1
        with pytest.raises(UserError, match=r"config.pbtxt: cannot be read \(Permission denied\)$"):
            verify_loaded(repository)
        os_error = r"fusion_head/1/model.pt: cannot be read \(Permission denied\)$"
    os.chmod(repository / "preprocess/config.pbtxt", 0o644)
    os.chmod(repository / "fusion_head/1/model.pt", 0o600)
    with as_user(NOBODY), pytest.raises(UserError, match=os_error):
        verify_loaded(repository)


def test_a_config_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_bytes(b"name: \xff")
    with pytest.raises(UserError, match=r"config.pbtxt: is not UTF-8 text \(invalid start byte at byte 6\)"):
        read_text(path)


@needs_root
def test_another_users_server_is_neither_asked_nor_removed() -> None:
    """Its workspace lies in the same directory, and only its owner may enter it."""
    owner = "diptych-1-999999999-1-"  # of no process that lives
    workspace = leftovers.temporary_directory() / f"{owner}0-workspace"
    workspace.mkdir(mode=0o700)
    try:
        key = AdminKey.random()
        key.save(workspace, ["127.0.0.1"], 54321)
        os.chown(workspace, SOMEBODY, SOMEBODY)
        os.chown(workspace / KEY_FILE, SOMEBODY, SOMEBODY)
        with as_user(SOMEBODY):
            assert find_admin_key("localhost:54321") == key
        with as_user(NOBODY):
            assert find_admin_key("localhost:54321") is None
            leftovers.sweep_dead()
        leftovers.sweep_dead()  # root leaves it too
        assert (workspace / KEY_FILE).is_file()
    finally:
        shutil.rmtree(workspace)


@pytest.mark.parametrize("name", ["with space", "ünïcode", "quote'd"])
def test_a_temporary_directory_that_triton_would_misread_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    assert leftovers.temporary_directory() == Path("/tmp")
