"""The administrative key and the certificates as they are given, before any server starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych_serving.errors import UserError
from diptych_serving.server.admin_key import AdminKey
from diptych_serving.server.tls import ServerTls

VALUE = "0123456789abcdef"


@pytest.mark.parametrize("header", ["x-key", "X-Key", "triton-grpc-protocol-x-key"])
def test_a_key_is_read_with_or_without_tritons_prefix(header: str) -> None:
    key = AdminKey.parse(f"{header}={VALUE}==")
    assert key == AdminKey("x-key", f"{VALUE}==")
    assert key.grpc_headers == {"triton-grpc-protocol-x-key": f"{VALUE}=="}
    assert VALUE not in repr(key)


@pytest.mark.parametrize(
    "given", [VALUE, f"={VALUE}", f"x key={VALUE}", "x-key=short", f"x-key={VALUE} {VALUE}", f"x,y={VALUE}"]
)
def test_a_key_that_tritonserver_would_misread_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(UserError, match="DIPTYCH_ADMIN_KEY: expected HEADER=VALUE") as caught:
        AdminKey.parse(given)
    assert VALUE not in str(caught.value)


def test_every_start_has_another_key() -> None:
    assert AdminKey.random() != AdminKey.random()


def test_half_of_a_pair_of_tls_files_is_refused(tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    pem.touch()
    assert ServerTls.from_options(None, None, None) is None
    for given in [(pem, None, None), (None, pem, None), (None, None, pem), (pem, None, pem)]:
        with pytest.raises(UserError, match="--tls-cert and --tls-key go together"):
            ServerTls.from_options(*given)
    with pytest.raises(UserError, match=r"--tls-key .*missing.key: no such file"):
        ServerTls.from_options(pem, tmp_path / "missing.key", None)
