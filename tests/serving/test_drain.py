"""When a drain stops waiting, against a front end that answers like tritonserver's control API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diptych_serving.server.drain import drain


class _Triton(ThreadingHTTPServer):
    """Holds the ensemble for so many looks; each look at the statistics finds more, or the same."""

    num_looks_held = 1_000_000
    num_finished = 0
    is_working = False


class _Handler(BaseHTTPRequestHandler):
    server: _Triton

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/unload"):
            return self._reply({})
        self.server.num_looks_held -= 1
        state = "UNLOADING" if self.server.num_looks_held > 0 else "UNAVAILABLE"
        self._reply([{"name": "classifier", "version": "1", "state": state}, {"name": "tally"}])

    def do_GET(self) -> None:
        self.server.num_finished += self.server.is_working
        count = self.server.num_finished
        model = {"name": "tally", "execution_count": count, "inference_stats": {"success": {"count": count}}}
        self._reply({"model_stats": [model]})

    def _reply(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def triton() -> Iterator[_Triton]:
    with _Triton(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_it_returns_once_the_last_request_has_ended(triton: _Triton) -> None:
    triton.num_looks_held, triton.is_working = 4, True
    assert drain("127.0.0.1", triton.server_port) is None
    assert triton.num_looks_held == 0


def test_what_callers_left_behind_is_not_waited_for(
    triton: _Triton, capsys: pytest.CaptureFixture[str]
) -> None:
    """2.51.0 keeps some requests whose deadline expired, for ever."""
    assert drain("127.0.0.1", triton.server_port, still_s=0.3) is None
    assert "Triton still holds requests, but has finished none for 0.3 s" in capsys.readouterr().err


def test_a_server_that_works_is_waited_for_until_the_time_is_over(triton: _Triton) -> None:
    triton.is_working = True
    problem = drain("127.0.0.1", triton.server_port, timeout_s=1.5, still_s=0.3)
    assert problem == "requests were still in flight after 2 s"
