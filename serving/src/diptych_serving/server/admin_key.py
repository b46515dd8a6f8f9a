"""The key of a server's administrative API, and where `diptych release` finds it.

A caller who can load models can run code, so this API always needs a key. Each start makes a new key unless
one is given. `diptych release` of the same user on the same machine reads it from the server's workspace,
which only that user can enter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from diptych_serving.errors import UserError
from diptych_serving.repository.files import read_text
from diptych_serving.server import leftovers

ENVIRONMENT = "DIPTYCH_ADMIN_KEY"
KEY_FILE = "admin_key.json"
HEADER = "x-diptych-admin-key"
# The prefix that Triton puts before the header's name of a restricted protocol.
GRPC_PREFIX = "triton-grpc-protocol-"
# APIs that change the server or hold other callers' data. Open: inference, health and metadata, which every
# caller needs, and model-config and statistics, which say no more than the metrics.
CLOSED = ("model-repository", "shared-memory", "trace", "logging")
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


@dataclasses.dataclass(frozen=True)
class AdminKey:
    """header  as in HTTP, in lower case; gRPC adds Triton's prefix"""

    header: str
    value: str = dataclasses.field(repr=False)

    @classmethod
    def random(cls) -> AdminKey:
        return cls(HEADER, secrets.token_urlsafe(32))

    @classmethod
    def parse(cls, text: str) -> AdminKey:
        """From HEADER=VALUE. Raises UserError, which never shows the value."""
        header, _, value = text.partition("=")
        header = header.lower().removeprefix(GRPC_PREFIX)
        if not re.fullmatch(r"[a-z0-9-]+", header) or not re.fullmatch(r"[!-~]{16,}", value):
            raise UserError(
                f"{ENVIRONMENT}: expected HEADER=VALUE, the header of letters, digits and '-', the value of "
                f"16 or more printable characters without spaces, such as {HEADER}=$(openssl rand -hex 32)"
            )
        return cls(header, value)

    @classmethod
    def from_environment(cls) -> AdminKey:
        """The given one, or a new one."""
        given = os.environ.get(ENVIRONMENT)
        return cls.parse(given) if given else cls.random()

    @property
    def grpc_headers(self) -> dict[str, str]:
        return {GRPC_PREFIX + self.header: self.value}

    @property
    def http_headers(self) -> dict[str, str]:
        return {self.header: self.value}

    @property
    def options(self) -> list[str]:
        """tritonserver's options. The key can only be a flag, which users who list processes can read."""
        restriction = f"{','.join(CLOSED)}:{self.header}={self.value}"
        return [f"--grpc-restricted-protocol={restriction}", f"--http-restricted-api={restriction}"]

    def save(self, workspace: Path, hosts: Collection[str], grpc_port: int) -> Path:
        """Write it to the server's workspace, for `find_workspace`.

        hosts  names and addresses of the server
        """
        path = workspace / KEY_FILE
        content = {"hosts": list(hosts), "grpc_port": grpc_port, "key": f"{self.header}={self.value}"}
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(content, file)
        return path


def find_workspace(address: str) -> Path | None:
    """The workspace of this user's server that listens on HOST:PORT of this machine, if there is one."""
    host, _, port = address.rpartition(":")
    for path, saved in _saved():
        if str(saved["grpc_port"]) == port and host in (*LOOPBACK, *saved["hosts"]):
            return path.parent
    return None


def find_admin_key(address: str) -> AdminKey | None:
    """That server's key."""
    workspace = find_workspace(address)
    return AdminKey.parse(json.loads(read_text(workspace / KEY_FILE))["key"]) if workspace else None


def _saved() -> Iterable[tuple[Path, dict[str, Any]]]:
    """The newest first: a killed server may have had the same port."""
    found = []
    for workspace in leftovers.files_of("diptych-"):
        path = workspace / KEY_FILE
        with contextlib.suppress(OSError):  # another user's, or just removed
            status = path.stat()
            if status.st_uid == os.geteuid():
                found.append((status.st_mtime, path, path.read_text("utf-8")))
    for _, path, content in sorted(found, reverse=True):
        yield path, json.loads(content)
