"""An authority of our own, and certificates of a server and a client by it."""

from __future__ import annotations

from pathlib import Path

import trustme


def make_certificates(directory: Path) -> Path:
    """ca.pem, server.pem and .key for localhost, client.pem and .key; stranger.pem is another authority."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    trustme.CA().cert_pem.write_to_path(directory / "stranger.pem")
    for name, certificate in (
        ("server", authority.issue_cert("localhost")),
        ("client", authority.issue_cert("client@diptych.test")),
    ):
        certificate.private_key_pem.write_to_path(directory / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
    return directory
