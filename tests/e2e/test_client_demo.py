"""`diptych-client demo` in headless Chromium, with the real server behind it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diptych_serving.server import Server
from tests.helpers.catalogues import write_picture

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,900")
PATIENCE_S = 60


class Browser:
    """Chromium's DevTools protocol over a pair of pipes: JSON messages that end in a null byte."""

    def __init__(self, command: str, profile: Path) -> None:
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()

        # The browser reads file descriptor 3 and writes 4.
        script = f'exec "$0" "$@" 3<&{read_commands} 4>&{write_answers}'
        options = [*OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, command, *options, "about:blank"],
            pass_fds=(read_commands, write_answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._unread = b""
        self._num_sent = 0
        self._session: dict[str, str] = {}
        (page,) = [
            target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._num_sent += 1
        message = {"id": self._num_sent, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read_message())
            if answer.get("id") == self._num_sent:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, pattern: str, element: str = "body") -> str:
        """The element's text, once it matches."""
        give_up_at, text = time.monotonic() + PATIENCE_S, ""
        while time.monotonic() < give_up_at:
            text = self.evaluate(f"document.querySelector({element!r})?.innerText") or ""
            if re.search(pattern, text):
                return text
            time.sleep(0.1)
        pytest.fail(f"{element} never showed {pattern!r}, at last: {text!r}")

    def choose_file(self, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        field = self.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=field, files=[str(path)])

    def type_words(self, words: str) -> None:
        self.evaluate("document.querySelector('#text textarea').focus()")
        self.evaluate("document.querySelector('#text textarea').select()")
        self.call("Input.insertText", text=words)

    def _read_message(self) -> bytes:
        while b"\0" not in self._unread:
            data = os.read(self._answers, 2**16)
            assert data, "the browser has ended"
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        return message


@pytest.fixture
def browser() -> Iterator[Browser]:
    command = next(filter(None, map(shutil.which, BROWSERS)), None)
    if command is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(command, Path(profile))
        yield browser
        browser.close()


@pytest.fixture
def page_url(server: Server, tmp_path: Path) -> Iterator[str]:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed (pip install 'diptych-client[demo]')")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (tmp_path / "demo.log").open("w+")
    command = [sys.executable, "-m", "diptych_client", "demo", "--port", str(port)]
    command += ["--url", server.grpc_url, "--timeout-s", "30"]
    demo = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at and demo.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        assert demo.poll() is None, (tmp_path / "demo.log").read_text()
        yield f"http://127.0.0.1:{port}/"
    finally:
        demo.terminate()
        demo.wait()
        log.close()


def test_a_picture_and_words_show_what_each_alone_would_say(
    page_url: str, browser: Browser, tmp_path: Path
) -> None:
    write_picture(tmp_path / "warm.png", "warm", 3)
    browser.call("Page.navigate", url=page_url)
    browser.wait_for("Nothing asked yet", "#status")

    browser.choose_file(tmp_path / "warm.png")
    browser.wait_for(r"^\d+ ms · model version 1", "#status")
    assert "%" in browser.wait_for("warm", "#image-alone")
    assert "%" not in browser.evaluate("document.querySelector('#text-alone').innerText")

    browser.type_words("fire and lamp")
    browser.evaluate("document.querySelector('#classify').click()")
    browser.wait_for(r"(decided|agree|together).* · \d+ ms · model version 1", "#status")
    for name in ("#both", "#image-alone", "#text-alone"):
        assert re.search(r"\d+%", browser.wait_for("warm", name))


def test_a_file_that_is_no_picture_is_refused_in_the_servers_words(
    page_url: str, browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    browser.call("Page.navigate", url=page_url)
    browser.wait_for("Nothing asked yet", "#status")
    browser.choose_file(tmp_path / "notes.png")
    browser.wait_for("InvalidInput.*13 bytes in no known format", "#status")
