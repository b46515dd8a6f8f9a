"""Certificates of the gRPC port. Triton has no TLS for HTTP, so HTTP then stays on loopback."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from diptych_serving.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerTls:
    """PEM files.

    certificate  the server's, followed by its intermediates
    key          of that certificate
    client_ca    authority of the callers' certificates; None: callers need none
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def from_options(
        cls, certificate: Path | None, key: Path | None, client_ca: Path | None
    ) -> ServerTls | None:
        """None if none is given. Raises UserError for half of a pair, and for unreadable files."""
        given = {"--tls-cert": certificate, "--tls-key": key, "--tls-client-ca": client_ca}
        if not any(given.values()):
            return None
        for option, path in given.items():
            if path is not None and not path.is_file():
                raise UserError(f"{option} {path}: no such file; a PEM file is expected")
        if certificate is None or key is None:
            raise UserError("--tls-cert and --tls-key go together, and --tls-client-ca needs both")
        return cls(certificate=certificate, key=key, client_ca=client_ca)

    @property
    def options(self) -> list[str]:
        """tritonserver's."""
        mutual = ["--grpc-use-ssl-mutual=1", f"--grpc-root-cert={self.client_ca}"] if self.client_ca else []
        return [
            "--grpc-use-ssl=1",
            f"--grpc-server-cert={self.certificate}",
            f"--grpc-server-key={self.key}",
            *mutual,
        ]
