"""The load test against the real tritonserver, as a user runs it: in processes of its own."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from diptych.runs.run import Run
from diptych_serving.server import Server
from loadtest.__main__ import parse
from tests.helpers.certificates import make_certificates

ROOT = Path(__file__).parents[2]
PAUSE_S = 0.7
END_TIMEOUT_S = 120

# Calls over both wires, one after the other: what was expected of each, what came of it.
JUDGE_CALLS = """
import sys
import locust
from locust.event import EventHook
from loadtest.caller import Caller
from loadtest.payloads import BOTH, CORRUPT, Payload
from loadtest.timeline import Timeline
from loadtest.wires import GrpcWire, HttpWire
from diptych_client._answer import Request

def judge(wire, kind, request):
    event, seen = EventHook(), []
    event.add_listener(lambda exception, **_: seen.append(exception))
    caller = Caller(wire, Timeline(), event, max_in_flight=1)
    caller.run(caller.prepare(Payload(kind=kind, request=request)))
    print(type(wire).__name__, kind, len(seen), repr(seen[0]))

for wire_type, authority in ((GrpcWire, sys.argv[1]), (HttpWire, sys.argv[2])):
    wire = wire_type(authority, timeout_s=30, num_connections=1)
    judge(wire, BOTH, Request(text=b"a leaf"))
    judge(wire, CORRUPT, Request(text=b"caf\\xe9"))
    judge(wire, CORRUPT, Request(text=b"a leaf"))
    judge(wire, BOTH, Request(text=b"caf\\xe9"))
    judge(wire_type("127.0.0.1:1", timeout_s=30, num_connections=1), CORRUPT, Request(text=b"caf\\xe9"))
"""

# A call that the generator starts a second after its instant.
CALL_LATE = """
import sys
import time
import gevent
import locust
from locust.event import EventHook
from loadtest.caller import Caller
from loadtest.payloads import TEXT, Payload
from loadtest.timeline import Timeline
from loadtest.wires import GrpcWire
from diptych_client._answer import Request

event, timeline = EventHook(), Timeline()
event.add_listener(lambda response_time, **_: print(response_time))
wire = GrpcWire(sys.argv[1], timeout_s=30, num_connections=1)
caller = Caller(wire, timeline, event, max_in_flight=1)
caller.start(caller.prepare(Payload(kind=TEXT, request=Request(text=b"a leaf"))), time.monotonic() - 1)
while caller.num_in_flight:
    gevent.sleep(0.01)
print(sum(second["late"] for second in timeline.take()))
"""


@pytest.fixture
def slo(tmp_path: Path) -> Path:
    return write_slo(tmp_path / "slo.toml", p99_ms=10_000, throughput_per_s=1)


@pytest.fixture
def catalogue(tiny_run: Run) -> Path:
    return Path(str(tiny_run.config.data.test_csv))


def write_slo(path: Path, *, p99_ms: float, throughput_per_s: float) -> Path:
    path.write_text(f"p99_ms = {p99_ms}\nerror_share = 0.0\nthroughput_per_s = {throughput_per_s}\n")
    return path


def start_load(results: Path, catalogue: Path, slo: Path, *arguments: object) -> subprocess.Popen[str]:
    files = ["--results", results, "--catalogue", catalogue, "--slo", slo]
    return subprocess.Popen(
        [sys.executable, "-m", "loadtest", *map(str, (*files, *arguments))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(load: subprocess.Popen[str]) -> str:
    """What it has printed. Ends it, workers included, where it does not end by itself."""
    try:
        output, _ = load.communicate(timeout=END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(load.pid, signal.SIGKILL)
        pytest.fail(f"the load test did not end: {load.communicate()[0]}")
    return output


def run_script(script: str, *urls: str) -> list[str]:
    """The lines it prints. In a process of its own, for Locust patches the one that imports it."""
    authorities = [url.partition("://")[2] for url in urls]
    command = [sys.executable, "-c", script, *authorities]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=END_TIMEOUT_S
    )
    return done.stdout.splitlines()


def read_summary(results: Path) -> dict[str, Any]:
    return json.loads((results / "summary.json").read_text())


def read_requests(results: Path) -> dict[str, dict[str, str]]:
    """Locust's own table, by the kind of call."""
    with (results / "requests_stats.csv").open(newline="") as file:
        return {row["Name"]: row for row in csv.DictReader(file)}


def test_two_workers_share_a_load_of_all_kinds_and_corrupt_inputs_fail_cleanly(
    server, catalogue, slo, tmp_path
):
    load = start_load(
        tmp_path,
        catalogue,
        slo,
        *("--url", server.grpc_url, "--workers", 2, "--users", 40, "--duration-s", 5, "--settle-s", 1),
        *("--mix", "both=2 image=1 text=1 corrupt=2"),
    )
    output = finish(load)
    assert load.returncode == 0, output
    assert len(re.findall(r"\(index [01]\) reported as ready", output)) == 2
    requests = read_requests(tmp_path)
    assert {"both", "image", "text", "corrupt"} < requests.keys()
    assert int(requests["corrupt"]["Request Count"]) > 10
    assert int(requests["Aggregated"]["Failure Count"]) == 0
    (phase,) = read_summary(tmp_path)["phases"]
    assert 20 < phase["offered_per_s"] < 80
    assert phase["generator_cpu"] > 0
    assert "<html" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "over_time.png").read_bytes().startswith(b"\x89PNG")


def test_a_breach_fails_the_run_and_says_which_objective_was_found_at_what(server, catalogue, tmp_path):
    slo = write_slo(tmp_path / "slo.toml", p99_ms=0.001, throughput_per_s=1e6)
    load = start_load(
        tmp_path,
        catalogue,
        slo,
        *("--url", server.http_url, "--users", 60, "--duration-s", 4, "--settle-s", 1),
        *("--max-in-flight", 1),  # far too few for 60 calls a second
    )
    output = finish(load)
    assert load.returncode == 1
    assert re.search(
        r"breach: p99_ms: found \d\S*, allowed 0\.001 \(constant, \d+\.\d calls/s offered\)", output
    )
    assert re.search(r"breach: error_share: found \d+\.\d+%, allowed 0\.000%", output)
    assert re.search(r"breach: throughput_per_s: found 0\.0 within .*, required 1000000\.0; no more", output)
    assert re.search(r"generator: .* at its limit .* \d+ arrivals missed because --max-in-flight", output)
    summary = read_summary(tmp_path)
    assert len(summary["breaches"]) == 3
    assert {row["Type"] for row in read_requests(tmp_path).values()} == {"HTTP", ""}
    assert summary["phases"][0]["num_missed"] > 0
    failures = int(read_requests(tmp_path)["Aggregated"]["Failure Count"])
    assert failures >= summary["phases"][0]["num_missed"]


def test_open_loop_latency_counts_the_wait_for_a_stalled_server_and_closed_loop_hides_it(
    server, catalogue, slo, tmp_path
):
    loads = {}
    for arrivals, users in (("closed", 1), ("poisson", 30)):
        results = tmp_path / arrivals
        loads[arrivals] = start_load(
            results,
            catalogue,
            slo,
            *("--url", server.grpc_url, "--arrivals", arrivals, "--users", users, "--duration-s", 9),
        )
    for load in loads.values():
        assert any("All users spawned" in line for line in load.stdout)
    time.sleep(4)
    server.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(PAUSE_S)
    finally:
        server.process.send_signal(signal.SIGCONT)
    for load in loads.values():
        output = finish(load)
        assert load.returncode == 0, output

    phases = {arrivals: read_summary(tmp_path / arrivals)["phases"][0] for arrivals in loads}
    # A seventh of the calls fell into the pause and waited, half of them for half of it or longer.
    assert phases["poisson"]["p95_ms"] > 1000 * PAUSE_S / 3
    assert phases["poisson"]["late_share"] < 0.5
    # One call waited for all of it; those that would have come meanwhile were never made.
    assert phases["closed"]["p95_ms"] < phases["poisson"]["p95_ms"] / 2
    longest_ms = float(read_requests(tmp_path / "closed")["Aggregated"]["Max Response Time"])
    assert longest_ms > 900 * PAUSE_S


def test_a_step_load_on_a_server_of_its_own_ends_with_the_knee_and_its_chart(
    exported_repository, catalogue, slo, tmp_path
):
    load = start_load(
        tmp_path,
        catalogue,
        slo,
        *("--repository", exported_repository, "--shape", "step", "--arrivals", "uniform"),
        *("--users", 3, "--duration-s", 12, "--settle-s", 1),
    )
    output = finish(load)
    assert load.returncode == 0, output
    assert re.search(r"The knee: \d\.\d calls/s offered\. It is the highest step which", output)
    summary = read_summary(tmp_path)
    assert [phase["name"] for phase in summary["phases"]] == ["step 1", "step 2", "step 3"]
    assert [phase["offered_per_s"] for phase in summary["phases"]] == [1, 2, 3]  # on the dot
    assert summary["knee"] == summary["phases"][2]
    assert (tmp_path / "latency_against_load.png").read_bytes().startswith(b"\x89PNG")


def test_a_corrupt_input_is_well_treated_only_when_it_is_refused_as_the_callers_error(server: Server):
    lines = run_script(JUDGE_CALLS, server.grpc_url, server.http_url)
    for wire, refusal in (("GrpcWire", "INVALID_ARGUMENT"), ("HttpWire", "400")):
        answered, refused, wrongly_answered, wrongly_refused, unreachable = (
            line.removeprefix(f"{wire} ") for line in lines if line.startswith(wire)
        )
        assert answered == "both 1 None"
        assert refused == "corrupt 1 None"
        assert wrongly_answered == "corrupt 1 WronglyAnswered('a corrupt input got an answer')"
        assert re.match(rf"both 1 CallFailed\(.{refusal}: .*0xe9 at offset 3", wrongly_refused)
        assert re.match(r"corrupt 1 CallFailed\(.(UNAVAILABLE|ConnectionRefusedError): ", unreachable)


def test_a_call_that_starts_late_is_counted_from_the_instant_it_was_due(server: Server):
    latency_ms, num_late = run_script(CALL_LATE, server.grpc_url)
    assert float(latency_ms) > 1000
    assert num_late == "1"


def test_what_is_wrong_with_the_arguments_is_said_before_the_run(catalogue, slo, tmp_path):
    load = start_load(tmp_path, catalogue, slo, "--url", "ftp://127.0.0.1:21")
    output = finish(load)
    assert load.returncode == 1
    assert "error: --host: found 'ftp://127.0.0.1:21'; accepted: grpc://ADDRESS:PORT" in output


@pytest.mark.parametrize(
    ("arguments", "protocol"),
    [
        ([], "grpc"),
        (["--protocol", "http"], "http"),
        (["--url", "http://a:1"], "http"),
        (["--url", "https://a:1"], "http"),
        (["--url", "grpcs://a:1"], "grpc"),
        (["--url", "http://a:1", "--protocol", "http"], "http"),
    ],
)
def test_results_are_stored_under_the_protocol_that_the_address_names(arguments, protocol):
    options, _ = parse(arguments)
    assert options.results.name == f"constant-poisson-{protocol}"


def test_an_address_and_a_protocol_that_disagree_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["--url", "http://a:1", "--protocol", "grpc"])
    assert "--protocol grpc: --url http://a:1 says http" in capsys.readouterr().err


# What came back over HTTP, with what the environment says of certificates and headers.
CALL_SECURE = """
import os, sys
import locust
from diptych_client._answer import Request
from loadtest.wires import CallFailed, HttpWire, access_of, parse_host
host = parse_host(sys.argv[1])
wire = HttpWire(host.authority, timeout_s=30, num_connections=1, access=access_of(host, os.environ))
try:
    wire.send(wire.encode(Request(text=b"a leaf")))
except CallFailed as error:
    print(error)
"""


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An HTTPS server that answers with the header that it got, and its certificates."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = str(self.headers["X-Team"]).encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    certificates = make_certificates(tmp_path / "certificates")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as https:
        https.socket = context.wrap_socket(https.socket, server_side=True)
        thread = threading.Thread(target=https.serve_forever)
        thread.start()
        yield f"https://localhost:{https.server_port}", certificates
        https.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("authority", "said"), [("ca.pem", "403: red"), ("stranger.pem", "SSL.*: .*certificate verify failed.*")]
)
def test_https_checks_the_certificate_and_sends_the_headers(refusing, authority, said):
    url, certificates = refusing
    environment = {
        **os.environ,
        "DIPTYCH_CA_FILE": str(certificates / authority),
        "DIPTYCH_HEADERS": "x-team=red",
    }
    command = [sys.executable, "-c", CALL_SECURE, url]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert re.fullmatch(said, done.stdout.strip()), done.stdout + done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_load_test_that_is_ended_leaves_no_process_behind(
    exported_repository, server, catalogue, slo, tmp_path, signum
):
    """Locust's workers, tritonserver and the model processes: nobody else would end them."""
    target = ("--url", server.http_url) if signum == signal.SIGKILL else ("--repository", exported_repository)
    load = start_load(tmp_path, catalogue, slo, *target, "--workers", 2, "--duration-s", 600)
    try:
        assert any("All users spawned" in line for line in load.stdout)
        started = psutil.Process(load.pid).children(recursive=True)
        assert len(started) >= (3 if signum == signal.SIGKILL else 7)
        load.send_signal(signum)
        _, alive = psutil.wait_procs(started, timeout=END_TIMEOUT_S)
        assert [" ".join(process.cmdline()) for process in alive] == []
        assert "Didn't get heartbeat from master" not in finish(load)  # they were told to end
        assert load.returncode == (-signal.SIGKILL if signum == signal.SIGKILL else 128 + signum)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(load.pid, signal.SIGKILL)
