"""The client against the real server: one answer over every wire, and what can be asked besides."""

from __future__ import annotations

import asyncio
import io
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import trustme
from PIL import Image

from diptych.runs.run import Run
from diptych_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    InvalidInput,
    ServerInfo,
    Tls,
)
from diptych_serving.server import Server
from tests.helpers.hostile_proxy import HostileProxy
from tests.helpers.raw_wire import Item

TIMEOUT_S = 30


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module")
def https(server: Server, authority: trustme.CA) -> Iterator[HostileProxy]:
    """Triton has no TLS for HTTP: as in production, a proxy before it has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with HostileProxy((server.contact, server.ports.http), tls=context) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def url_of(server: Server, https: HostileProxy) -> Callable[[str], str]:
    return {
        "grpc": server.grpc_url,
        "http": server.http_url,
        "https": f"https://localhost:{https.port}",
    }.__getitem__


@pytest.fixture(scope="module", params=["grpc", "http", "https"])
def url(request: pytest.FixtureRequest, url_of: Callable[[str], str]) -> str:
    return url_of(request.param)


@pytest.fixture(scope="module")
def client(url: str, ca_file: Path) -> Iterator[Client]:
    with Client(url, timeout_s=TIMEOUT_S, tls=Tls(ca_file=ca_file)) as client:
        yield client


@pytest.fixture(scope="module")
def expected(server: Server, items: list[Item]) -> list[dict[str, float]]:
    with Client(server.grpc_url, timeout_s=TIMEOUT_S) as client:
        return [client.classify(image or None, text.decode()).probabilities for image, text in items]


def test_the_same_item_has_the_same_answer_over_every_wire(
    client: Client, items: list[Item], expected: list[dict[str, float]]
) -> None:
    for (image, text), probabilities in zip(items, expected, strict=True):
        answer = client.classify(image or None, text.decode())
        assert answer.probabilities == probabilities
        assert answer.label == max(probabilities, key=probabilities.__getitem__)
        assert answer.model_version == "1"
        assert answer.timings.total_ms >= answer.timings.waiting_ms > 0


def test_the_async_twin_gives_the_same_answers_many_at_once(
    url: str, ca_file: Path, items: list[Item], expected: list[dict[str, float]]
) -> None:
    async def ask() -> list[dict[str, float]]:
        async with AsyncClient(url, timeout_s=TIMEOUT_S, tls=Tls(ca_file=ca_file)) as client:
            answers = await asyncio.gather(
                *(client.classify(image or None, text.decode()) for image, text in items)
            )
            assert await client.labels() == tuple(expected[0])
            assert (await client.server_info()).is_ready
            assert (await client.health(deep=True)).is_healthy
            await client.wait_until_ready(timeout_s=TIMEOUT_S)
            with pytest.raises(InvalidInput, match="no known format"):
                await client.classify(b"no picture")
            return [answer.probabilities for answer in answers]

    for found, probabilities in zip(asyncio.run(ask()), expected, strict=True):
        assert found == pytest.approx(probabilities, abs=1e-5)  # batches add in another order


def test_threads_share_a_client(client: Client, items: list[Item], expected: list[dict[str, float]]) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = list(
            threads.map(lambda item: client.classify(item[0] or None, item[1].decode()), items * 3)
        )
    for answer, probabilities in zip(answers, expected * 3, strict=True):
        assert answer.probabilities == pytest.approx(probabilities, abs=1e-5)


def test_every_form_of_a_picture_has_the_same_answer(client: Client, tmp_path: Path) -> None:
    picture = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 50).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(buffer.getvalue())
    with path.open("rb") as file:
        forms = [
            path,
            str(path),
            buffer.getvalue(),
            io.BytesIO(buffer.getvalue()),
            file,
            picture,
            np.array(picture),
        ]
        answers = [client.classify(image=form).probabilities for form in forms]
    assert answers == [answers[0]] * len(forms)


def test_a_shrunk_picture_has_nearly_the_same_answer(
    server: Server, tiny_run: Run, items: list[Item]
) -> None:
    size_px = 2 * tiny_run.config.image.size_px
    with Client(server.grpc_url) as plain, Client(server.grpc_url, shrink_to_px=size_px) as shrinking:
        for image, text in items[:3]:
            large = Image.open(io.BytesIO(image)).resize((1600, 1200))
            whole, shrunk = (client.classify(large, text.decode()) for client in (plain, shrinking))
            assert shrunk.probabilities == pytest.approx(whole.probabilities, abs=0.05)


def test_labels_and_server_info_say_what_is_served(client: Client, tiny_run: Run) -> None:
    assert client.labels() == tuple(tiny_run.labels)
    assert client.server_info() == ServerInfo("triton", "2.51.0", ("1",), True)


@pytest.mark.parametrize("is_deep", [False, True])
def test_a_healthy_server_is_called_healthy(client: Client, is_deep: bool) -> None:
    health = client.health(deep=is_deep)
    assert (health.is_healthy, health.is_deep, health.error) == (True, is_deep, None)


def test_an_explanation_holds_what_each_modality_alone_says(client: Client, items: list[Item]) -> None:
    image, text = items[0][0], items[0][1].decode()
    answer = client.classify(image, text, explain=True)
    assert answer.explanation is not None
    for alone, asked in (
        (answer.explanation.image_only, {"image": image}),
        (answer.explanation.text_only, {"text": text}),
    ):
        assert alone is not None
        assert alone.probabilities == pytest.approx(client.classify(**asked).probabilities, abs=1e-5)
    assert client.classify(image, explain=True).explanation.decided_by == "image"
    assert client.classify(text=text, explain=True).explanation.decided_by == "text"


def test_the_async_twin_explains_too(server: Server, items: list[Item]) -> None:
    async def ask() -> None:
        async with AsyncClient(server.grpc_url) as client:
            answer = await client.classify(items[0][0], items[0][1].decode(), explain=True)
            assert answer.explanation.decided_by in ("image", "text", "either", "together")

    asyncio.run(ask())


def test_a_label_below_min_score_is_withheld_and_its_score_is_not(client: Client, items: list[Item]) -> None:
    image, text = items[0]
    answer = client.classify(image, text.decode())
    withheld = client.classify(image, text.decode(), min_score=1.0)
    assert (withheld.label, withheld.score) == (None, pytest.approx(answer.score))
    assert [scored.label for scored in withheld.top(2)] == [scored.label for scored in answer.top(2)]


def test_a_url_is_fetched_by_the_callers_own_fetcher_alone(server: Server, items: list[Item]) -> None:
    pictures = {"https://shop/1.png": items[0][0]}
    with Client(server.grpc_url, fetch=pictures.__getitem__) as client:
        fetched, given = client.classify("https://shop/1.png"), client.classify(items[0][0])
        assert fetched.probabilities == given.probabilities
    with (
        Client(server.grpc_url) as client,
        pytest.raises(InvalidInput, match="URLs are never fetched, unless"),
    ):
        client.classify("https://shop/1.png")


def test_a_certificate_that_nobody_vouches_for_is_refused(https: HostileProxy) -> None:
    with (
        Client(f"https://localhost:{https.port}") as client,
        pytest.raises(ConnectionFailed, match="certificate verify failed"),
    ):
        client.classify(text="words")


def test_a_certificate_of_another_name_is_refused(https: HostileProxy, ca_file: Path) -> None:
    with (
        Client(f"https://127.0.0.1:{https.port}", tls=Tls(ca_file=ca_file)) as client,
        pytest.raises(ConnectionFailed, match=r"not valid for '127\.0\.0\.1'|IP address mismatch"),
    ):
        client.classify(text="words")
    tls = Tls(ca_file=ca_file, server_name="localhost")
    with Client(f"https://127.0.0.1:{https.port}", tls=tls) as client:
        assert client.classify(text="words").label


def test_greenlets_wait_at_the_same_time(server: Server) -> None:
    """In a process of its own, which gevent patches. A stuck hub would run the calls one after another."""
    code = """
        from gevent import monkey; monkey.patch_all()
        import sys, warnings, gevent
        from diptych_client import Client
        ticks = []
        def tick():
            while True:
                ticks.append(1)
                gevent.sleep(0.001)
        gevent.spawn(tick)
        for url in sys.argv[1:]:
            with Client(url, timeout_s=30) as client:
                ticks.clear()
                calls = [gevent.spawn(client.classify, text=f"words {number}") for number in range(20)]
                gevent.joinall(calls, raise_error=True)
                print(len({call.value.request_id for call in calls}), len(ticks) > 2)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), server.grpc_url, server.http_url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "20 True\n20 True\n", done.stderr
