"""A fake server on real sockets of the loopback interface. Nothing here needs torch or Triton."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from diptych_client import Answer, AsyncClient, Client
from tests.client.fake_triton import FakeTriton


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    with FakeTriton().running() as fake:
        yield fake


@pytest.fixture(params=["grpc", "http"])
def wire(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[Client, AsyncClient])
def classify_each(request: pytest.FixtureRequest) -> Callable[..., list[Answer]]:
    """Asks about one item after the other with one client, blocking or asynchronous."""

    def ask(url: Any, items: list[dict[str, Any]], *, pause_s: float = 0.0, **arguments: Any) -> list[Answer]:
        answers = []
        if request.param is Client:
            with Client(url, **arguments) as client:
                for item in items:
                    answers.append(client.classify(**item))
                    time.sleep(pause_s)
            return answers

        async def ask_all() -> list[Answer]:
            async with AsyncClient(url, **arguments) as client:
                for item in items:
                    answers.append(await client.classify(**item))
                    await asyncio.sleep(pause_s)
            return answers

        return asyncio.run(ask_all())

    return ask


@pytest.fixture
def classify_texts(classify_each) -> Callable[..., list[Answer]]:
    return lambda url, texts, **arguments: classify_each(url, [{"text": text} for text in texts], **arguments)


@pytest.fixture
def classify_images(classify_each) -> Callable[..., list[Answer]]:
    return lambda url, images, **arguments: classify_each(
        url, [{"image": image} for image in images], **arguments
    )


@pytest.fixture
def listen() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Starts a TCP server that treats every connection as told; gives its port."""
    listeners, threads = [], []

    def start(treat: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):  # the client hangs up, as it should
                    treat(connection)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return listener.getsockname()[1]

    yield start
    for listener, thread in zip(listeners, threads, strict=True):
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
