"""Every Python block in client/README.md, as it stands there but for the addresses, against a real server."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from fastapi.testclient import TestClient

from diptych_client import ConnectionFailed, DiptychError, InvalidInput
from diptych_client.testing import FakeServer
from diptych_serving.server import Server
from tests.helpers.catalogues import make_catalogue, write_picture
from tests.helpers.hostile_proxy import HostileProxy

README = Path(__file__).parents[2] / "client/README.md"
BLOCKS = {
    re.findall(r"^#+ (.+)$", README.read_text("utf-8")[: block.start()], re.MULTILINE)[-1]: block[1]
    for block in re.finditer(r"^```python\n(.+?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
}


@pytest.fixture
def recipe(
    server: Server, exported_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The blocks by their headings, with this server's addresses, in a folder with what they read."""
    monkeypatch.chdir(tmp_path)
    write_picture(Path("phone.png"), "warm", 1)
    Path("phone.png").rename("phone.jpg")
    make_catalogue(tmp_path, 10).rename("catalogue.csv")
    addresses = {
        "grpc://127.0.0.1:8001": server.grpc_url,
        "http://127.0.0.1:8000": server.http_url,
        "local:build/model_repository": f"local:{exported_repository}",
    }
    pattern = re.compile("|".join(map(re.escape, addresses)))
    return {name: pattern.sub(lambda found: addresses[found[0]], block) for name, block in BLOCKS.items()}


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(code, str(README), "exec"), names)
    return names


def test_no_recipe_goes_untested() -> None:
    tests = Path(__file__).read_text("utf-8")
    assert BLOCKS
    assert [name for name in BLOCKS if f'recipe["{name}"]' not in tests] == []


def test_the_first_answer(recipe: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe["diptych-client"])
    assert re.match(r"(cold|green|warm) (0\.\d+|1\.0)\n\{'cold': ", capsys.readouterr().out)


def test_errors_are_told_apart(recipe: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe["Errors and retries"])
    assert re.match("image - .*12 bytes in no known format", capsys.readouterr().out)


def test_many_items(recipe: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe["Many items"])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 100
    assert "failed" not in printed


def test_a_batch_job(recipe: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe["A whole table"])
    assert capsys.readouterr().out == "10 scored, 0 in scores.errors.csv\n"


def test_an_asynchronous_service(recipe: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe["An asynchronous service"])
    assert re.fullmatch(r"\['\w+', '\w+'\]\n", capsys.readouterr().out)


def test_a_fastapi_dependency(recipe: dict[str, str]) -> None:
    with TestClient(run(recipe["A FastAPI dependency"])["app"]) as web:
        answer = web.post("/classify", params={"text": "fire"}, content=Path("phone.jpg").read_bytes())
        assert (answer.status_code, sorted(answer.json())) == (200, ["label", "score"])
        refused = web.post("/classify", content=b"not a picture")
    assert refused.status_code == 422
    assert "13 bytes in no known format" in refused.json()["detail"]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionFailed("nobody there"),
        InvalidInput("no such token", "an id", field="headers"),
        InvalidInput("unexpected inference input 'text'", "an id"),
    ],
)
def test_a_failure_that_is_not_the_callers_is_not_called_so(
    recipe: dict[str, str], error: DiptychError
) -> None:
    names = run(recipe["A FastAPI dependency"])
    app, fake = names["app"], FakeServer(["cold"], error)
    with TestClient(app) as web:
        app.dependency_overrides[names["get_classifier"]] = lambda: fake.async_client()  # noqa: PLW0108  (FastAPI would read its options as a query)
        refused = web.post("/classify", params={"text": "fire"})
    assert refused.status_code == 503
    assert refused.json()["detail"] == "the classifier is not available"
    assert refused.json()["request_id"]


def test_tls_and_a_token(
    recipe: dict[str, str],
    server: Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton has no TLS for HTTP: as in production, a proxy before it has, and asks for a certificate."""
    authority = trustme.CA()
    ours = authority.issue_cert("client@diptych.test")
    authority.cert_pem.write_to_path("ca.pem")
    ours.private_key_pem.write_to_path("client.key")
    ours.cert_chain_pems[0].write_to_path("client.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    authority.issue_cert("localhost").configure_cert(context)
    monkeypatch.setenv("CLASSIFIER_TOKEN", "the-token-of-the-day")
    with HostileProxy((server.contact, server.ports.http), tls=context) as proxy:
        run(recipe["TLS, tokens and proxies"].replace("localhost:8443", f"localhost:{proxy.port}"))
    assert re.fullmatch(r"(cold|green|warm)\n", capsys.readouterr().out)


def test_testing_your_own_code(recipe: dict[str, str]) -> None:
    Path("test_mine.py").write_text(recipe["Testing your own code"], "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_without_a_server(recipe: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe["Without a server"])
    assert capsys.readouterr().out == "True\n"
