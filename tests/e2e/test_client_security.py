"""Certificates and keys, against tritonserver's own TLS and its restricted API."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych_client import AsyncClient, Client, ConnectionFailed, NotAllowed, Tls
from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.probe import grpc_responds
from diptych_serving.server.tls import ServerTls
from tests.helpers.certificates import make_certificates
from tests.helpers.tiny_repository import LABELS, build_tiny_repository

ROOT = Path(__file__).parents[2]
KEY = "the-key-of-this-deployment"
HEADER = "triton-grpc-protocol-x-api-key"  # as Triton names what --grpc-restricted-protocol calls x-api-key


class SecureServer(Server):
    """Its gRPC port asks for a key before it infers, too."""

    def _options(self, *arguments: object) -> list[str]:
        return [
            *super()._options(*arguments),
            f"--grpc-restricted-protocol=inference:x-api-key={KEY}",
        ]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def url(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = build_tiny_repository(tmp_path_factory.mktemp("secure") / "model_repository")
    tls = ServerTls(
        certificate=certificates / "server.pem",
        key=certificates / "server.key",
        client_ca=certificates / "ca.pem",
    )
    with SecureServer(repository, ServerConfig.on_free_ports(tls=tls)) as running:
        running.wait_until_ready()
        yield running.grpc_url.replace("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def tls(certificates: Path) -> Tls:
    return Tls(
        ca_file=certificates / "ca.pem",
        certificate_file=certificates / "client.pem",
        key_file=certificates / "client.key",
    )


def test_a_client_with_a_certificate_and_the_key_is_answered(url: str, tls: Tls) -> None:
    with Client(url, tls=tls, headers={HEADER: KEY}) as client:
        assert client.classify(text="a red cat").label in LABELS
        assert client.server_info().is_ready


def test_its_async_twin_is_answered_too(url: str, tls: Tls) -> None:
    async def ask() -> str | None:
        async with AsyncClient(url, tls=tls, headers=lambda: {HEADER: KEY}) as client:
            return (await client.classify(text="a red cat")).label

    assert asyncio.run(ask()) in LABELS


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"ca_file": "ca.pem"}, "no certificate of its own"),
        (
            {"ca_file": "stranger.pem", "certificate_file": "client.pem", "key_file": "client.key"},
            "another CA",
        ),
        ({}, "the public authorities"),
    ],
)
def test_a_client_is_refused_with(url: str, certificates: Path, files: dict[str, str], name: str) -> None:
    tls = Tls(**{field: certificates / file for field, file in files.items()})
    with (
        Client(url, tls=tls, headers={HEADER: KEY}, timeout_s=10) as client,
        pytest.raises(ConnectionFailed, match=r"^grpcs://localhost") as caught,
    ):
        client.classify(text="words")
    assert KEY not in str(caught.value)


def test_the_supervisor_gets_a_response_though_it_has_no_certificate(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    assert grpc_responds("127.0.0.1", port, is_secure=True, timeout_s=30)
    assert not grpc_responds("127.0.0.1", port, is_secure=False, timeout_s=1)


def test_a_plain_connection_to_a_tls_port_is_a_failed_connection(url: str) -> None:
    with Client(url.replace("grpcs", "grpc")) as client, pytest.raises(ConnectionFailed):
        client.classify(text="words")


@pytest.mark.parametrize("headers", [None, {HEADER: "wrong-key"}])
def test_without_the_key_the_header_is_named_and_the_wrong_one_is_not_repeated(
    url: str, tls: Tls, headers: dict[str, str] | None
) -> None:
    with (
        Client(url, tls=tls, headers=headers) as client,
        pytest.raises(NotAllowed, match=f"expecting header '{HEADER}'") as caught,
    ):
        client.classify(text="words")
    assert "wrong-key" not in repr(caught.value)


def test_what_waiting_cannot_mend_ends_it_at_once(url: str, tls: Tls) -> None:
    with Client(url, tls=tls) as client, pytest.raises(NotAllowed, match="expecting header"):
        client.wait_until_ready(timeout_s=600)


def test_health_without_the_key_is_seen_by_an_inference_alone(url: str, tls: Tls) -> None:
    with Client(url, tls=tls) as client:
        assert client.health().is_healthy
        assert isinstance(client.health(deep=True).error, NotAllowed)


# A load test's call, with what the environment says of certificates and headers.
CALL = """
import os, sys
import locust
from diptych_client._answer import Request
from loadtest.wires import CallFailed, GrpcWire, access_of, parse_host
host = parse_host(sys.argv[1])
wire = GrpcWire(host.authority, timeout_s=30, num_connections=1, access=access_of(host, os.environ))
encoded = wire.encode(Request(text=b"a red cat"))
try:
    print(wire.check(encoded, wire.send(encoded)) > 0)
except CallFailed as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("key", "said"), [(KEY, "True"), ("wrong", f"UNAVAILABLE: .*expecting header '{HEADER}'")]
)
def test_a_load_test_takes_certificates_and_headers_from_the_environment(
    url: str, certificates: Path, key: str, said: str
) -> None:
    environment = {
        **os.environ,
        "DIPTYCH_CA_FILE": str(certificates / "ca.pem"),
        "DIPTYCH_CERTIFICATE_FILE": str(certificates / "client.pem"),
        "DIPTYCH_KEY_FILE": str(certificates / "client.key"),
        "DIPTYCH_HEADERS": f"{HEADER}={key}",
    }
    command = [sys.executable, "-c", CALL, url]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert re.fullmatch(said, done.stdout.strip()), done.stdout + done.stderr
