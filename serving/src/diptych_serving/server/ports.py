"""The three ports of a server: 0 becomes a free port, a taken one is an error."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import socket
from pathlib import Path

from diptych_serving.errors import UserError
from diptych_serving.server.address import Address

HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the server listens. 0 stands for any free port until `settle` has chosen one."""

    http: int = HTTP_PORT
    grpc: int = GRPC_PORT
    metrics: int = METRICS_PORT

    def settle(self, host: str) -> Ports:
        """The same ports, checked to be free there, and free ones in place of 0. Raises UserError."""
        address = Address.resolve(host)
        settled: dict[str, int] = {}
        with contextlib.ExitStack() as sockets:  # all are held until the last is chosen, so that they differ
            for field, port in dataclasses.asdict(self).items():
                listener = sockets.enter_context(socket.socket(address.family))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if port in settled.values():
                    raise UserError(f"--{field}-port {port}: already given to another of the three ports")
                _bind(listener, address, port, field)
                settled[field] = listener.getsockname()[1]
        return Ports(**settled)


def _bind(listener: socket.socket, address: Address, port: int, field: str) -> None:
    try:
        listener.bind((str(address), port))
        listener.listen()
    except PermissionError:
        raise UserError(f"--{field}-port {port}: ports below 1024 need root; choose a higher one") from None
    except OverflowError:
        raise UserError(f"--{field}-port {port}: a port is a number from 0 (any free one) to 65535") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise UserError(f"--host {address}: {error.strerror}") from None
        raise UserError(
            f"--{field}-port {port}: taken{_by_which_process(port)}. "
            "Stop that process, or choose another port (0: any free one)."
        ) from None


def _by_which_process(port: int) -> str:
    """Command and id of the process that listens on a port, if this user may see it."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: listening
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                return f" by {(process / 'comm').read_text().strip()} (process {process.name})"
    return ""
