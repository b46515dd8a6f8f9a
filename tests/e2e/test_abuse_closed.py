"""What nobody asked to open is closed: other addresses, and the administrative API without its key."""

from __future__ import annotations

import http.client
import json
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tritonclient.grpc as triton
import trustme
from tritonclient.utils import InferenceServerException

from diptych_client import Client, Tls
from diptych_serving.release.control import Control
from diptych_serving.server import Server
from diptych_serving.server.admin_key import AdminKey, find_admin_key
from tests.helpers.raw_wire import grpc_channel

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # the second: its IPv6 form
WRONG = AdminKey("x-diptych-admin-key", "not-the-key-of-this-server")
GRPC_CALLS = {
    "load": lambda channel, headers: channel.load_model("preprocess", headers=headers),
    "unload": lambda channel, headers: channel.unload_model("classifier", headers=headers),
    "index": lambda channel, headers: channel.get_model_repository_index(headers=headers),
    "map shared memory": lambda channel, headers: channel.register_system_shared_memory(
        "x", "/x", 8, headers=headers
    ),
    "list shared memory": lambda channel, headers: channel.get_system_shared_memory_status(headers=headers),
    "map CUDA memory": lambda channel, headers: channel.register_cuda_shared_memory(
        "x", b"", 0, 8, headers=headers
    ),
    "read trace": lambda channel, headers: channel.get_trace_settings(headers=headers),
    "set trace": lambda channel, headers: channel.update_trace_settings(
        settings={"trace_file": "/tmp/x"}, headers=headers
    ),
    "read logging": lambda channel, headers: channel.get_log_settings(headers=headers),
    "set logging": lambda channel, headers: channel.update_log_settings(
        {"log_verbose_level": 1}, headers=headers
    ),
}
HTTP_CALLS = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/preprocess/load"),
    ("POST", "/v2/repository/models/classifier/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("POST", "/v2/systemsharedmemory/unregister"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("POST", "/v2/cudasharedmemory/region/x/register"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/trace/setting"),
    ("POST", "/v2/models/classifier/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
]


def call(server: Server, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.contact, server.ports.http, timeout=30)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def listeners(port: int) -> set[str]:
    """The local addresses that listen on a port, as the kernel writes them."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                found.add(local.rpartition(":")[0])
    return found


@pytest.mark.parametrize("headers", [{}, WRONG.grpc_headers], ids=["no key", "wrong key"])
@pytest.mark.parametrize("name", GRPC_CALLS)
def test_grpc_refuses_administration_without_the_key(
    server: Server, name: str, headers: dict[str, str]
) -> None:
    with (
        grpc_channel(server) as channel,
        pytest.raises(InferenceServerException, match="This protocol is restricted") as caught,
    ):
        GRPC_CALLS[name](channel, headers)
    assert server.admin_key.value not in str(caught.value)


@pytest.mark.parametrize("headers", [{}, {WRONG.header: WRONG.value}], ids=["no key", "wrong key"])
@pytest.mark.parametrize(("method", "path"), HTTP_CALLS)
def test_http_refuses_administration_without_the_key(
    server: Server, method: str, path: str, headers: dict[str, str]
) -> None:
    status, body = call(server, method, path, headers)
    assert status == 403
    assert "restricted" in body
    assert server.admin_key.value not in body


def test_the_key_opens_both_wires(server: Server) -> None:
    with grpc_channel(server) as channel:
        index = channel.get_model_repository_index(headers=server.admin_key.grpc_headers)
    assert "classifier" in {model.name for model in index.models}
    key = server.admin_key
    status, body = call(server, "POST", "/v2/repository/index", {key.header: key.value})
    assert status == 200
    assert "classifier" in {model["name"] for model in json.loads(body)}


def test_a_release_on_the_same_machine_finds_the_key_and_nobody_else_may_read_it(server: Server) -> None:
    assert find_admin_key(server.grpc_url.removeprefix("grpc://")) == server.admin_key
    assert find_admin_key(f"elsewhere.example:{server.ports.grpc}") is None
    assert stat.S_IMODE(server.admin_key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.admin_key_file.parent.stat().st_mode) == 0o700
    with Control(server.grpc_url) as control:
        assert control.serving_version() == 1


def test_the_clients_own_calls_need_no_key(server: Server) -> None:
    for url in (server.grpc_url, server.http_url):
        with Client(url) as client:
            client.wait_until_ready(timeout_s=30)
            assert client.health(deep=True).is_healthy
            assert client.server_info().is_ready
            assert client.classify(text="snow").probabilities.keys() == {"cold", "green", "warm"}
    with grpc_channel(server) as channel:
        assert isinstance(channel, triton.InferenceServerClient)
        assert channel.get_model_metadata("classifier").platform == "ensemble"


def test_with_tls_from_two_flags_http_stays_on_loopback(
    exported_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    arguments = ["--host", "0.0.0.0", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    arguments += ["--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key")]
    monkeypatch.setenv("DIPTYCH_ADMIN_KEY", "x-team-key=a-key-of-our-own-choice")
    process = subprocess.Popen(
        [sys.executable, "-m", "diptych.cli", "serve", str(exported_repository), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        assert process.stdout
        printed = ""
        while "releases" not in printed:
            line = process.stdout.readline()
            assert line, "serve ended before it was ready"
            printed += line
        grpc_port, http_port = (
            re.search(rf"{wire}://127.0.0.1:(\d+)", printed)[1] for wire in ("grpcs", "http")
        )
        assert listeners(int(http_port)) <= LOOPBACK
        assert not listeners(int(grpc_port)) & LOOPBACK
        with Client(f"grpcs://localhost:{grpc_port}", tls=Tls(ca_file=tmp_path / "ca.pem")) as client:
            assert client.classify(text="snow").probabilities
        assert find_admin_key(f"localhost:{grpc_port}") == AdminKey("x-team-key", "a-key-of-our-own-choice")
    finally:
        watchdog.cancel()
        process.terminate()
        process.communicate(timeout=60)


def test_it_listens_on_loopback_alone(server: Server) -> None:
    for port in (server.ports.http, server.ports.grpc, server.ports.metrics):
        assert listeners(port) <= LOOPBACK
