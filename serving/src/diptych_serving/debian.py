"""Gets Debian packages without root: apt-get downloads them, dpkg-deb unpacks them into a directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from diptych_serving.progress import progress_bar

POLL_S = 0.2


class PackagesUnavailable(Exception):
    """The packages cannot be downloaded on this machine; the message says why."""


def download_packages(names: Sequence[str], cache: Path) -> list[Path]:
    """The .deb file of each package, downloaded where `cache` does not hold it yet."""
    cache = cache.absolute()  # the commands below run in directories of their own
    missing = [name for name in names if _in_cache(name, cache) is None]
    if missing:
        _require("apt-get")
        cache.mkdir(parents=True, exist_ok=True)
        # An incomplete download must not count as a package next time.
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            _download(missing, Path(directory))
            for deb in Path(directory).glob("*.deb"):
                deb.replace(cache / deb.name)
    found = [_in_cache(name, cache) for name in names]
    if None in found:
        raise PackagesUnavailable(f"apt-get brought no {names[found.index(None)]}_*.deb")
    return [deb for deb in found if deb is not None]


@contextlib.contextmanager
def unpacked(debs: Sequence[Path]) -> Iterator[Path]:
    """A temporary directory with the files of the packages."""
    _require("dpkg-deb")
    with tempfile.TemporaryDirectory(dir=debs[0].parent) as directory:
        for deb in debs:
            _run_with_progress(
                ["dpkg-deb", "-x", str(deb), directory], Path(directory), f"Unpacking {deb.name}"
            )
        yield Path(directory)


def _in_cache(name: str, cache: Path) -> Path | None:
    return max(cache.glob(f"{name}_*.deb"), default=None)


def _download(names: Sequence[str], directory: Path) -> None:
    try:
        options: list[str] = []
        num_bytes = _num_bytes(names, options, directory)
    except PackagesUnavailable:
        # A fresh container has no package lists. Private lists need no root and do not change the system.
        options = _private_lists(directory)
        _run_with_progress(["apt-get", *options, "update"], directory, "Updating package lists")
        num_bytes = _num_bytes(names, options, directory)
    what = f"Downloading {' and '.join(names)}"
    _run_with_progress(["apt-get", *options, "download", *names], directory, what, num_bytes)


def _private_lists(directory: Path) -> list[str]:
    state = directory / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    options = [f"Dir::State::Lists={state}/lists", f"Dir::Cache={state}/cache"]
    if os.geteuid() == 0:
        options.append("APT::Sandbox::User=root")  # the user _apt may not write here
    return [part for option in options for part in ("-o", option)]


def _num_bytes(names: Sequence[str], options: Sequence[str], directory: Path) -> int:
    """Lines of apt's answer: 'URL' FILE BYTES HASH."""
    command = ["apt-get", *options, "download", "--print-uris", *names]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackagesUnavailable(_last_line(done.stderr))
    return sum(int(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("'"))


def _run_with_progress(
    command: Sequence[str], directory: Path, what: str, num_bytes: int | None = None
) -> None:
    """Run in `directory`; the progress bar shows the size of its files."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        progress_bar(what, num_bytes, is_bytes=True) as advance,
        subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=errors) as process,
    ):
        num_seen = 0
        try:
            while process.poll() is None:
                num_now = sum(file.stat().st_size for file in directory.glob("*.deb"))
                advance(num_now - num_seen)
                num_seen = num_now
                time.sleep(POLL_S)
        except BaseException:
            process.terminate()
            raise
        if process.returncode:
            errors.seek(0)
            raise PackagesUnavailable(_last_line(errors.read()))


def _last_line(messages: str) -> str:
    lines = [line for line in messages.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise PackagesUnavailable(f"this machine has no {program}")
