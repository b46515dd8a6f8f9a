"""`make loadtest`: serves a repository, puts load on it, stops it.

    python -m loadtest --repository build/model_repository --shape step --users 120 --duration-s 120

An argument that is not listed below goes to Locust.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from diptych_serving.errors import UserError
from diptych_serving.server import Server, ServerConfig, children
from diptych_serving.server.signals import end_in_order

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
REPOSITORY = Path("build/model_repository")
RESULTS = Path(__file__).with_name("results")


def main() -> int:
    end_in_order()
    options, for_locust = parse(sys.argv[1:])
    results = options.results
    summary = results / "summary.json"
    summary.unlink(missing_ok=True)  # the last run's
    try:
        with (
            _address(options) as host,
            children.running(_locust_command(options, host, results, for_locust)) as locust,
        ):
            status: int = locust.wait()
    except UserError as error:
        sys.exit(f"error: {error}")
    if summary.exists():
        sys.stdout.write(f"{results}: report.html, summary.json, charts, CSV\n")
    return status


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--repository", type=Path, default=REPOSITORY, help="The repository to serve.")
    target.add_argument("--url", help="A running server: grpc[s]:// or http[s]://HOST:PORT.")
    parser.add_argument(
        "--protocol", choices=("grpc", "http"), help="For --repository; default: grpc. A URL contains it."
    )
    parser.add_argument("--shape", choices=("constant", "step", "soak", "spike"), default="constant")
    parser.add_argument("--arrivals", choices=("closed", "poisson", "uniform"), default="poisson")
    parser.add_argument(
        "--users", type=int, default=30, help="The most users at once; in open loop, calls per second."
    )
    parser.add_argument("--duration-s", type=int, default=60)
    parser.add_argument(
        "--workers", type=int, default=0, help="Generate the load in this number of processes."
    )
    parser.add_argument("--results", type=Path, help="Default: loadtest/results/SHAPE-ARRIVALS-PROTOCOL.")
    options, for_locust = parser.parse_known_args(arguments)
    of_url = urlsplit(options.url).scheme.removesuffix("s") if options.url else "grpc"
    if options.url and options.protocol not in (None, of_url):
        parser.error(f"--protocol {options.protocol}: --url {options.url} says {of_url}")
    options.protocol = options.protocol or of_url
    options.results = options.results or RESULTS / f"{options.shape}-{options.arrivals}-{options.protocol}"
    return options, for_locust


@contextlib.contextmanager
def _address(options: argparse.Namespace) -> Iterator[str]:
    """The URL of the given server, or of one that runs inside the `with`."""
    if options.url:
        yield options.url
        return
    with Server(options.repository, ServerConfig.on_free_ports()) as server:
        server.wait_until_ready()
        yield server.grpc_url if options.protocol == "grpc" else server.http_url


def _locust_command(
    options: argparse.Namespace, host: str, results: Path, for_locust: Sequence[str]
) -> list[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--host", host, "--shape", options.shape, "--arrivals", options.arrivals]
    command += ["--users", str(options.users), "--run-time", f"{options.duration_s}s"]
    command += ["--results", str(results), "--csv", str(results / "requests"), "--csv-full-history"]
    command += ["--html", str(results / "report.html")]
    if options.workers:
        port = str(_free_port())
        command += ["--processes", str(options.workers), "--master-bind-host", "127.0.0.1"]
        command += ["--master-bind-port", port, "--master-port", port]
    return [*command, *for_locust]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


if __name__ == "__main__":
    sys.exit(main())
