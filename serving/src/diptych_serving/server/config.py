"""How one tritonserver runs, and how the process that started it looks after it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych_serving.server.address import LOCALHOST
from diptych_serving.server.admin_key import AdminKey
from diptych_serving.server.drain import DRAIN_TIMEOUT_S
from diptych_serving.server.ports import Ports
from diptych_serving.server.tls import ServerTls
from diptych_serving.server.tracing import Tracing
from diptych_serving.server.vitals import SILENCE_S

if TYPE_CHECKING:
    from diptych_serving.repository.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How a tritonserver runs.

    host            the address or name to listen on
    ports           0: any free one
    tritonserver    the binary; None: the container's, or the one from PyPI
    log             a file for its output; None: one that is removed with the server
    settings        instances, threads and batch sizes; None: those of the repository
    admin_key       opens the administrative API; None: a new one
    tls             None: unencrypted
    tracing         None: no spans are sent
    triton_options  more of tritonserver's, after those that Diptych sets
    """

    host: str = LOCALHOST
    ports: Ports = dataclasses.field(default_factory=Ports)
    tritonserver: Path | None = None
    log: Path | None = None
    settings: Settings | None = None
    admin_key: AdminKey | None = None
    tls: ServerTls | None = None
    tracing: Tracing | None = None
    triton_options: tuple[str, ...] = ()

    @classmethod
    def on_free_ports(cls, **fields: Any) -> ServerConfig:
        """Any free ports; the other fields as given."""
        return cls(ports=Ports(http=0, grpc=0, metrics=0), **fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervision:
    """How a running server is looked after, the same after each restart.

    silence_s        without any answer, after which a server counts as hung
    drain_timeout_s  that requests in flight are given when a signal asks to stop
    public_key       of the signature that manifests must bear; None: checksums are enough
    must_have_gpu    end a server whose models are not on a GPU, whatever the repository was exported for
    shows_whole_log  on stdout, from its start; else warnings and errors on stderr, once it is ready
    """

    silence_s: float = SILENCE_S
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    public_key: Path | None = None
    must_have_gpu: bool = False
    shows_whole_log: bool = False
