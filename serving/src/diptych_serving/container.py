"""What a container runs as its first process: `python3 -m diptych_serving.container --repository /models`.

Before the start it checks every file's checksum, the GPU and the room in /dev/shm, and removes what a crash
left. Then it runs tritonserver, checks on which device the models were loaded, reaps orphaned children, and
drains on SIGTERM. It exits with a status other than 0 as soon as the server is dead or hung. It does not
restart the server: the orchestrator does, and shows it in its events. tritonserver's log goes to stdout.

Standard library only, in all that it imports of Diptych; `--require-signature` needs `cryptography`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diptych_serving.errors import UserError
from diptych_serving.repository.verification import verify_loaded
from diptych_serving.server.admin_key import AdminKey
from diptych_serving.server.config import ServerConfig, Supervision
from diptych_serving.server.drain import DRAIN_TIMEOUT_S
from diptych_serving.server.foreground import serve
from diptych_serving.server.placement import describe_excess, require_target
from diptych_serving.server.ports import GRPC_PORT, HTTP_PORT, METRICS_PORT, Ports
from diptych_serving.server.supervisor import Restarts
from diptych_serving.server.tls import ServerTls
from diptych_serving.server.tracing import Tracing
from diptych_serving.server.vitals import SILENCE_S

REPOSITORY = Path("/models")
# A container has its own network; the orchestrator decides what reaches it.
EVERY_ADDRESS = "0.0.0.0"
# Options of tritonserver that --triton-option may not set, and what to do instead. Those that add up
# (--backend-config, --metrics-config, --trace-config, --cache-config) may be given.
FIXED = "the entry point sets it, and Diptych relies on its value"
OURS = {
    **dict.fromkeys(
        (
            "--model-store",
            "--backend-directory",
            "--model-control-mode",
            "--load-model",
            "--disable-auto-complete-config",
            "--strict-readiness",
            "--exit-timeout-secs",
            "--grpc-restricted-protocol",
            "--http-restricted-api",
            "--log-file",
        ),
        FIXED,
    ),
    "--model-repository": "use --repository",
    **dict.fromkeys(("--http-address", "--grpc-address", "--metrics-address"), "use --host"),
    **{f"--{wire}-port": f"use the entry point's own --{wire}-port" for wire in ("http", "grpc", "metrics")},
    **dict.fromkeys(
        (
            "--grpc-use-ssl",
            "--grpc-use-ssl-mutual",
            "--grpc-server-cert",
            "--grpc-server-key",
            "--grpc-root-cert",
        ),
        "use --tls-cert, --tls-key and --tls-client-ca",
    ),
}


def main() -> None:
    options = parser().parse_args()
    try:
        require_free_options(options.triton_option)
        tls = ServerTls.from_options(options.tls_cert, options.tls_key, options.tls_client_ca)
        tracing = Tracing.from_options(options.trace_url, options.trace_one_in)
        verify_loaded(options.repository, options.require_signature)
        if options.check_only and options.gpu == "auto":
            return
        must_have_gpu = options.gpu == "required"
        require_target(options.repository, must_have_gpu=must_have_gpu)
        if options.check_only:
            return
        if excess := describe_excess(options.repository):
            sys.stderr.write(f"warning: {excess}\n")
        status = serve(
            options.repository,
            ServerConfig(
                host=options.host,
                ports=Ports(http=options.http_port, grpc=options.grpc_port, metrics=options.metrics_port),
                admin_key=AdminKey.from_environment(),
                tls=tls,
                tracing=tracing,
                triton_options=tuple(options.triton_option),
            ),
            Supervision(
                silence_s=options.silence_s,
                drain_timeout_s=options.drain_s,
                public_key=options.require_signature,
                must_have_gpu=must_have_gpu,
                shows_whole_log=True,
            ),
            Restarts(max_in_a_row=0),
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(status)


def require_free_options(options: Sequence[str]) -> None:
    """Refuse options of tritonserver that the entry point sets itself. Raises UserError."""
    for option in options:
        name = option.partition("=")[0]
        if not name.startswith("--"):
            raise UserError(
                f"--triton-option {option}: expected an option of tritonserver with its value, such as "
                "--triton-option=--grpc-infer-thread-count=4"
            )
        if name in OURS:
            raise UserError(f"--triton-option {option}: {OURS[name]}")


def parser() -> argparse.ArgumentParser:
    """Of the entry point's command line."""
    found = argparse.ArgumentParser(
        prog="python3 -m diptych_serving.container",
        description="Run tritonserver over a repository as a container's first process.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = found.add_argument
    add("--repository", default=REPOSITORY, type=Path, help="what `diptych export` made")
    add("--check-only", action="store_true", help="only verify the files, and the GPU if one is required")
    add(
        "--gpu",
        default="auto",
        choices=("auto", "required"),
        help="required: only on a GPU, with a repository for GPUs; auto: as the repository was exported",
    )
    add("--host", default=EVERY_ADDRESS, help="the address to listen on")
    add("--http-port", default=HTTP_PORT, type=int, help="0: any free one")
    add("--grpc-port", default=GRPC_PORT, type=int, help="0: any free one")
    add("--metrics-port", default=METRICS_PORT, type=int, help="0: any free one")
    add("--drain-s", default=DRAIN_TIMEOUT_S, type=float, help="time for requests in flight after SIGTERM")
    add(
        "--silence-s",
        default=SILENCE_S,
        type=float,
        help="after this time without any answer the server counts as hung, and the container ends",
    )
    add(
        "--require-signature",
        type=Path,
        metavar="PEM",
        help="serve only releases signed with the key of this public key",
    )
    add("--tls-cert", type=Path, help="PEM file: encrypt gRPC; HTTP then stays on loopback")
    add("--tls-key", type=Path, help="PEM file with the certificate's key")
    add("--tls-client-ca", type=Path, help="PEM file: callers must show certificates signed by it")
    add("--trace-url", metavar="URL", help="send OpenTelemetry spans to this collector (OTLP over HTTP)")
    add(
        "--trace-one-in",
        default=1000,
        type=_positive,
        help="trace one in N of the requests that no caller traces",
    )
    add(
        "--triton-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="another option of tritonserver, as --triton-option=--NAME=VALUE; repeatable",
    )
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1")
    return int(text)


if __name__ == "__main__":
    main()
