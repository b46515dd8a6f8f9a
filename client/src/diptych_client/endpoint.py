"""Where a server is: a URL, taken apart and checked."""

from __future__ import annotations

import dataclasses
from urllib.parse import urlsplit

from diptych_client.errors import InvalidInput

DEFAULT_PORTS = {"grpc": 8001, "http": 8000}  # Triton's own
ACCEPTED = "grpc://host:port or http://host:port"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Raises InvalidInput, without repeating credentials that the URL may hold."""
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, parts.hostname, parts.port
        except ValueError as error:  # a port that is no number, a broken IPv6 address
            raise InvalidInput.found("url", f"a malformed URL ({error})", ACCEPTED) from None
        if "@" in parts.netloc:
            raise InvalidInput.found("url", "credentials before the host", ACCEPTED)
        has_more = parts.path not in ("", "/") or parts.query or parts.fragment
        if scheme not in DEFAULT_PORTS or not host or has_more:
            raise InvalidInput.found("url", repr(url), ACCEPTED)
        return cls(scheme, host, DEFAULT_PORTS[scheme] if port is None else port)

    @property
    def authority(self) -> str:
        """host:port, with the brackets that IPv6 needs."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"
