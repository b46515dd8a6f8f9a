"""A release that is interrupted, at any step and in any way, leaves a repository that serves as before."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diptych.cli.main import app
from diptych_serving.errors import UserError
from diptych_serving.release.activation import activate
from diptych_serving.repository import journal
from diptych_serving.repository.layout import (
    ENSEMBLE,
    STEPS,
    held_versions,
    loaded_by_step,
    loaded_versions,
    previous_version,
    serving_version,
    sha256,
    write_loaded,
)
from diptych_serving.repository.lock import only_one
from diptych_serving.repository.verification import verify_loaded
from tests.helpers.crashing_release import ANSWER, DONE, REFUSED, STOPPED, Crash, FakeServer, run
from tests.helpers.releasing import contents, run_command
from tests.helpers.repository_files import SOURCE

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["diptych_serving.release.activation"])
MAX_STEPS = 80
OLD, NEW = 1, 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real configs over two versions of next to nothing; version 1 serves."""
    repository = tmp_path_factory.mktemp("crashes") / "model_repository"
    shutil.copytree(SOURCE, repository)
    for version in (OLD, NEW):
        for model in (ENSEMBLE, *STEPS):
            (repository / model / str(version)).mkdir()
        directory = repository / ENSEMBLE / str(version)
        requests = [{"image": "", "text": "snow", "probabilities": ANSWER.tolist()}]
        (directory / "golden.json").write_text(json.dumps({"max_difference": 0.001, "requests": requests}))
        checksums = {f"{ENSEMBLE}/{version}/golden.json": sha256(directory / "golden.json")}
        manifest = {"version": version, "labels": ["cold", "warm"], "sha256": checksums}
        manifest |= {"created": "2026-11-25T17:00:00", "run": {"name": "a", "test": None}}
        manifest |= {"precision": {}, "git_commit": None}
        (directory / "manifest.json").write_text(json.dumps(manifest))
    return repository


@pytest.fixture
def repository(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "model_repository")


def crashed(source: Path, directory: Path, crash: Crash) -> tuple[Path, int]:
    """A copy over which `activate` has been interrupted, and the process's exit code, -9 for SIGKILL."""
    repository = shutil.copytree(source, directory / f"{crash.at}-{crash.then_at}")
    process = PROCESSES.Process(target=run, args=(repository, NEW, crash))
    process.start()
    process.join()
    assert process.exitcode is not None
    return repository, process.exitcode


def each_step(source: Path, directory: Path, signum: int | None) -> Iterator[tuple[Path, int]]:
    """One copy for each step at which it was interrupted, until one was not reached any more."""
    for at in range(1, MAX_STEPS):
        repository, exitcode = crashed(source, directory, Crash(at=at, signum=signum))
        if exitcode == DONE:
            assert at > 20  # eight files change, and the server is asked as often
            return
        yield repository, exitcode
    pytest.fail(f"still not done after {MAX_STEPS} steps")


def files_in(repository: Path) -> dict[str, bytes]:
    """Without the half of a file that no rename has put in place: nothing reads it."""
    files = {str(Path(name).relative_to(repository)): data for name, data in contents(repository).items()}
    return {name: data for name, data in files.items() if not name.endswith(".unfinished")}


def is_as_before(repository: Path, before: dict[str, bytes]) -> bool:
    return files_in(repository) == before


@pytest.fixture(scope="module")
def before(source: Path) -> dict[str, bytes]:
    return files_in(source)


def is_released(repository: Path) -> bool:
    return (
        serving_version(repository) == NEW
        and loaded_by_step(repository) == {step: [OLD, NEW] for step in STEPS}
        and previous_version(repository) == OLD
    )


def test_after_kill_9_of_the_command_at_any_step_the_next_start_serves_the_old_version(
    source: Path, before: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undone = 0
    for repository, exitcode in each_step(source, tmp_path, signal.SIGKILL):
        assert exitcode == -signal.SIGKILL
        is_pending = journal.read(repository) is not None
        verify_loaded(repository)  # what every start begins with
        said = capsys.readouterr().err
        assert ("`release activate` of version 2" in said) == is_pending
        undone += is_pending
        assert is_as_before(repository, before) or (not is_pending and is_released(repository))
    assert undone > 15


def test_after_kill_9_of_the_server_at_any_step_the_files_are_as_before(
    source: Path, before: dict[str, bytes], tmp_path: Path
) -> None:
    for repository, exitcode in each_step(source, tmp_path, None):
        assert exitcode == REFUSED
        verify_loaded(repository)
        assert is_as_before(repository, before) or is_released(repository)


def test_after_kill_9_of_both_the_next_start_serves_the_old_version(
    source: Path, before: dict[str, bytes], tmp_path: Path
) -> None:
    """The server dies while the steps load; the command dies at each step of the undoing."""
    killed = 0
    for then_at in range(15, MAX_STEPS):
        repository, exitcode = crashed(source, tmp_path, Crash(at=14, signum=None, then_at=then_at))
        killed += exitcode == -signal.SIGKILL
        verify_loaded(repository)
        assert is_as_before(repository, before)
        if exitcode == REFUSED:
            break
    assert killed > 5


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda signum: signum.name
)
def test_a_signal_at_any_step_undoes_everything_before_the_command_ends(
    source: Path, before: dict[str, bytes], tmp_path: Path, signum: signal.Signals
) -> None:
    for repository, exitcode in each_step(source, tmp_path, signum):
        assert exitcode == STOPPED
        assert is_as_before(repository, before) or is_released(repository)


@pytest.mark.parametrize("at", [8, 14, 20])
def test_a_second_signal_ends_the_undoing_which_the_next_start_finishes(
    source: Path, before: dict[str, bytes], tmp_path: Path, at: int
) -> None:
    crash = Crash(at=at, signum=signal.SIGTERM, then_at=at + 2, then_signum=signal.SIGINT)
    repository, exitcode = crashed(source, tmp_path, crash)
    assert exitcode == -signal.SIGINT
    assert journal.read(repository)
    verify_loaded(repository)
    assert is_as_before(repository, before)


def test_a_server_that_is_gone_is_asked_once_while_the_rest_is_undone(repository: Path) -> None:
    """One that hangs takes minutes for each question."""
    server = FakeServer(repository)
    asked_of_the_dead: list[bool] = []

    def die_at_the_last_step() -> None:
        if server.steps["tally"] != [OLD]:
            server.is_dead = True
        if server.is_dead:
            asked_of_the_dead.append(True)

    server.on_call = die_at_the_last_step
    with pytest.raises(UserError, match="failed to connect"):
        activate(repository, NEW, server)
    assert len(asked_of_the_dead) == 2  # by the command itself, then by the undoing
    assert loaded_versions(repository) == [OLD]


def interrupted(repository: Path) -> None:
    """As after kill -9 in the midst of loading."""
    process = PROCESSES.Process(target=run, args=(repository, NEW, Crash(at=14, signum=signal.SIGKILL)))
    process.start()
    process.join()
    assert journal.read(repository)


def test_the_next_release_says_what_it_found_and_finishes_the_undo_first(repository: Path) -> None:
    interrupted(repository)
    server = FakeServer(repository)
    done = activate(repository, NEW, server)
    assert done.undone is not None
    assert re.search(
        r"`release activate` of version 2 at grpc://\S+, begun 20\S+ was interrupted", done.undone
    )
    assert "Undone: version 1 serves, as before" in done.undone
    assert is_released(repository)
    assert server.ensemble == NEW


def test_a_rollback_after_an_interrupted_release_undoes_it_and_rolls_nothing_back(
    repository: Path, before: dict[str, bytes]
) -> None:
    activate(repository, NEW, FakeServer(repository))
    activate(repository, OLD, FakeServer(repository))
    settled = files_in(repository)
    interrupted(repository)
    assert "is running or was interrupted" in run_command("list", repository)
    said = run_command("rollback", repository)
    assert "Undone: version 1 serves, as before" in said
    assert "was not told and may still hold version 2" in said
    assert files_in(repository) == settled


def test_a_path_in_letters_that_the_terminal_lacks_is_no_error(source: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(source, tmp_path / "модель")
    interrupted(repository)
    done = subprocess.run(
        [sys.executable, "-m", "diptych.cli", "release", "rollback", str(repository)],
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Undone: version 1 serves, as before" in done.stdout
    assert journal.read(repository) is None


def test_in_80_columns_the_list_cuts_no_name(repository: Path) -> None:
    manifest = repository / ENSEMBLE / str(OLD) / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["run"]["name"] = "quickstart-2"
    tree |= {"git_commit": "0123456789", "precision": {"image_encoder": "bf16", "text_encoder": "fp32"}}
    manifest.write_text(json.dumps(tree))
    listed = CliRunner().invoke(app, ["release", "list", str(repository)], env={"COLUMNS": "80"}).output
    assert "…" not in listed
    for whole in ("serves", "quickstart-2", "2026-11-25", "17:00", "bf16 fp32", "0123456"):
        assert whole in listed
    assert max(map(len, listed.splitlines())) <= 80


def test_a_server_that_could_not_be_told_is_told_by_the_next_command(repository: Path) -> None:
    class ForgetsToUnload(FakeServer):
        def load(self, model: str) -> None:
            if model == "fusion_head":
                raise UserError("grpc: load_model fusion_head: no memory")
            super().load(model)

    failing = ForgetsToUnload(repository)
    with pytest.raises(
        UserError, match=r"(?s)^grpc: load_model fusion_head: no memory\n.*not every server"
    ) as caught:
        activate(repository, NEW, failing)
    assert "diptych release rollback" in str(caught.value)
    assert serving_version(repository) == OLD
    assert loaded_versions(repository) == [OLD]
    assert journal.read(repository)
    assert failing.steps["tally"] == [OLD], "the first failure kept the other steps from being undone"


def test_a_start_waits_for_a_release_that_is_at_work(repository: Path) -> None:
    journal.begin(repository, "activate", NEW, [])
    said: list[str] = []
    with only_one(repository), pytest.raises(UserError, match="another release or export is changing it"):
        journal.undo_interrupted(repository, said.append, wait_s=0.3)
    assert re.search(r"is changing it \(process \d+\)\. Waiting for it", said[0])
    journal.undo_interrupted(repository, said.append)
    assert journal.read(repository) is None


def test_a_journal_that_is_none_is_named_with_what_to_do(repository: Path) -> None:
    (repository / ENSEMBLE / journal.JOURNAL_FILE).write_text('{"command": "activate"}')
    with pytest.raises(UserError, match=r"in_progress.json: is not the journal of a release .*remove the"):
        verify_loaded(repository)


def test_what_any_step_loads_is_verified(repository: Path) -> None:
    """The versions that `preprocess` names are not all."""
    (repository / f"fusion_head/{NEW}/extra.py").write_text("nobody listed this")
    verify_loaded(repository)
    write_loaded(repository, [OLD, NEW])
    journal.restore_rest(
        repository, journal.Journal(**{**vars(journal_of(repository)), "loaded": {"preprocess": [OLD]}})
    )
    assert loaded_by_step(repository)["preprocess"] == [OLD]
    with pytest.raises(UserError, match=r"extra\.py: is not in the manifest of version 2"):
        verify_loaded(repository)


def journal_of(repository: Path) -> journal.Journal:
    written = journal.begin(repository, "activate", NEW, [])
    journal.finish(repository)
    return written


def test_several_servers_are_switched_together(repository: Path) -> None:
    one, other = FakeServer(repository), FakeServer(repository)
    other.url = "grpc://127.0.0.1:2"
    activate(repository, NEW, one, other)
    assert one.ensemble == other.ensemble == serving_version(repository) == NEW


def test_where_one_of_several_servers_fails_all_stay_with_the_old_version(
    repository: Path, before: dict[str, bytes]
) -> None:
    one, other = FakeServer(repository), FakeServer(repository)
    other.url = "grpc://127.0.0.1:2"
    other.is_dead = True
    with pytest.raises(UserError, match="failed to connect"):
        activate(repository, NEW, one, other)
    assert one.ensemble == OLD
    assert is_as_before(repository, before)


def test_a_server_that_a_release_did_not_tell_is_brought_along_later(repository: Path) -> None:
    one, other = FakeServer(repository), FakeServer(repository)
    activate(repository, NEW, one)
    with pytest.raises(UserError, match=r"Update this one first: diptych release activate \S+ 2 --"):
        activate(repository, OLD, other)
    assert activate(repository, NEW, other).before == NEW
    assert one.ensemble == other.ensemble == NEW
    assert is_released(repository)
    assert other.steps == loaded_by_step(repository)


def test_a_server_of_another_repository_is_refused(repository: Path) -> None:
    server = FakeServer(repository)
    server.ensemble = 7
    with pytest.raises(UserError, match=r"serves version 7, .* says 1: is that server's repository an"):
        activate(repository, NEW, server)


def test_a_server_that_reads_other_configs_is_named_with_the_likely_reasons(
    repository: Path, tmp_path: Path, before: dict[str, bytes]
) -> None:
    """Such as another user's `serve --tuning`, which serves a copy."""
    server = FakeServer(shutil.copytree(repository, tmp_path / "copy"))
    with pytest.raises(UserError, match=r"did not load version 2 of preprocess, because .* --tuning"):
        activate(repository, NEW, server)
    assert is_as_before(repository, before)


def test_a_half_deleted_version_is_pruned_with_the_rest(repository: Path) -> None:
    activate(repository, NEW, FakeServer(repository))
    write_loaded(repository, [NEW])
    shutil.rmtree(repository / f"tally/{OLD}")
    assert activate(repository, NEW, FakeServer(repository), keep=1).pruned == [OLD]
    assert held_versions(repository) == [NEW]
