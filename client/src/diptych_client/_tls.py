"""TLS of `grpcs://` and `https://` connections: trusted authorities and the client certificate."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from diptych_client._errors import InvalidInput

if TYPE_CHECKING:
    import ssl

    import grpc  # type: ignore[import-untyped,unused-ignore]

PemFile = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Tls:
    """All files are PEM. They are read when the first connection is made.

    ca_file           the authorities to trust; None: the default ones
    certificate_file  client certificate with its chain, if the server asks for one (mutual TLS)
    key_file          its private key, without a passphrase
    server_name       the name to expect in the server's certificate; None: the URL's host
    """

    ca_file: PemFile | None = None
    certificate_file: PemFile | None = None
    key_file: PemFile | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise InvalidInput.refusing("tls", "one of certificate_file and key_file", "both or neither")

    def ssl_context(self) -> ssl.SSLContext:
        """For HTTP. Raises InvalidInput if a file cannot be used."""
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file, password=_no_passphrase)
        except OSError as error:  # SSLError is one
            raise InvalidInput.refusing("tls", f"files that cannot be used ({error})", "PEM files") from None
        return context

    def grpc_credentials(self) -> grpc.ChannelCredentials:
        """For gRPC, which has its own authorities. Raises InvalidInput if a file cannot be used."""
        import grpc

        self.ssl_context()  # for a broken file gRPC only says "handshake failed"
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca_file),
            private_key=_read(self.key_file),
            certificate_chain=_read(self.certificate_file),
        )


def _no_passphrase() -> str:
    """Replaces OpenSSL's prompt on the terminal."""
    return ""


def _read(path: PemFile | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()
