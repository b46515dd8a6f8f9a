"""Where a server listens: turns a name or an address into tritonserver's options.

tritonserver does not resolve names (docs/triton.md, 1), so they are resolved here.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import socket

from diptych_serving.errors import UserError

LOCALHOST = "127.0.0.1"


@dataclasses.dataclass(frozen=True)
class Address:
    """One IPv4 or IPv6 address."""

    ip: ipaddress.IPv4Address | ipaddress.IPv6Address

    @classmethod
    def resolve(cls, host: str) -> Address:
        """From an address, with or without brackets, or a name; IPv4 if a name has both. Raises UserError."""
        name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            if not name:
                raise socket.gaierror(0, "is empty")
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            reason = error.strerror if isinstance(error, socket.gaierror) else "is not the name of a host"
            raise UserError(
                f"--host {host}: {reason}. Expected an address of this machine, such as 127.0.0.1, ::1, "
                "0.0.0.0 for all, :: for all of IPv6, or a name that has one"
            ) from None
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        address = str(found[0][4][0])
        if "%" in address:
            raise UserError(f"--host {host}: tritonserver takes no address with an interface (%)")
        return cls(ipaddress.ip_address(address))

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.ip.version == 4 else socket.AF_INET6

    @property
    def for_http(self) -> str:
        """As tritonserver's HTTP and metrics options take it."""
        return str(self.ip) if self.ip.version == 4 else f"ipv6:{self.ip}"

    @property
    def for_url(self) -> str:
        """As URLs and gRPC take it."""
        return str(self.ip) if self.ip.version == 4 else f"[{self.ip}]"

    @property
    def contact(self) -> Address:
        """The address to call from this machine: the loopback address if the server listens on all."""
        if not self.ip.is_unspecified:
            return self
        return Address(ipaddress.ip_address(LOCALHOST if self.ip.version == 4 else "::1"))

    def __str__(self) -> str:
        return str(self.ip)
