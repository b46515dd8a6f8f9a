"""Where a server is: a URL, taken apart and checked, and the addresses behind its name."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Sequence
from typing import Union
from urllib.parse import urlsplit

from diptych_client.errors import InvalidInput

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}  # Triton's own; it speaks no HTTPS
LOCAL = "local"
ACCEPTED = "grpc://host:port or http://host:port, with an s for TLS (grpcs, https), or local:PATH"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """What a URL says. `path` is a model repository for `local:`, and empty for all else."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Raises InvalidInput, without repeating credentials that the URL may hold."""
        if not isinstance(url, str):
            raise InvalidInput.refusing("url", type(url).__qualname__, ACCEPTED)
        if url.startswith(f"{LOCAL}:") and len(url) > len(LOCAL) + 1:
            return cls(LOCAL, "", 0, url[len(LOCAL) + 1 :])
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, parts.hostname, parts.port
        except ValueError as error:  # a port that is no number, a broken IPv6 address
            raise InvalidInput.refusing("url", f"a malformed URL ({error})", ACCEPTED) from None
        if "@" in parts.netloc:
            raise InvalidInput.refusing("url", "credentials before the host", ACCEPTED)
        has_more = parts.path not in ("", "/") or parts.query or parts.fragment
        if scheme not in DEFAULT_PORTS or not host or has_more:
            raise InvalidInput.refusing("url", repr(url), ACCEPTED)
        return cls(scheme, host, DEFAULT_PORTS[scheme] if port is None else port)

    @property
    def is_secure(self) -> bool:
        return self.scheme in ("grpcs", "https")

    @property
    def has_name(self) -> bool:
        """Whether the host is a name, which may stand for many addresses that come and go."""
        if self.scheme == LOCAL:
            return False
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False

    @property
    def authority(self) -> str:
        """host:port, with the brackets that IPv6 needs."""
        return _authority(self.host, self.port)

    def __str__(self) -> str:
        return f"{LOCAL}:{self.path}" if self.scheme == LOCAL else f"{self.scheme}://{self.authority}"


@dataclasses.dataclass(frozen=True)
class Address:
    """One server: an endpoint, and the IP address that its name stood for."""

    endpoint: Endpoint
    ip: str

    @property
    def scheme(self) -> str:
        return self.endpoint.scheme

    @property
    def authority(self) -> str:
        return _authority(self.ip, self.endpoint.port)

    def __str__(self) -> str:
        at = f" at {self.ip}" if self.ip != self.endpoint.host else ""
        return f"{self.endpoint}{at}"


def parse_urls(urls: Union[str, Sequence[str]]) -> tuple[Endpoint, ...]:
    """One or many, each once. Raises InvalidInput."""
    endpoints = tuple(
        dict.fromkeys(Endpoint.parse(url) for url in ([urls] if isinstance(urls, str) else urls))
    )
    if not endpoints:
        raise InvalidInput.refusing("url", "an empty list", ACCEPTED)
    return endpoints


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
