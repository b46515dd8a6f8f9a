"""What a container runs as its first process: `python3 -m diptych.serving.container --repository /models`.

It looks before it starts (every file's checksum, the GPU, room in /dev/shm), removes what a crash left, runs
tritonserver, ends children that nobody else asks after, drains on SIGTERM, and exits non-zero as soon as the
server is dead or hung. It starts nothing again: the orchestrator is the supervisor there. It keeps count, can
move the work to another machine, and shows in its events what a restart in here would hide.

Standard library only, with all that it imports of Diptych; but `--require-signature` needs `cryptography`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diptych.errors import UserError
from diptych.serving.admin_key import AdminKey
from diptych.serving.drain import DRAIN_TIMEOUT_S
from diptych.serving.foreground import serve
from diptych.serving.hardware import GPU_DEVICE, has_gpu
from diptych.serving.ports import GRPC_PORT, HTTP_PORT, METRICS_PORT
from diptych.serving.supervisor import Restarts
from diptych.serving.tls import ServerTls
from diptych.serving.verification import verify_loaded
from diptych.serving.vitals import SILENCE_S

REPOSITORY = Path("/models")
# A container's own network; what reaches it is the orchestrator's to say.
EVERY_ADDRESS = "0.0.0.0"


def main() -> None:
    options = _parser().parse_args()
    try:
        check(options.repository, gpu=options.gpu, public_key=options.require_signature)
        if options.check_only:
            return
        status = serve(
            options.repository,
            host=options.host,
            http_port=options.http_port,
            grpc_port=options.grpc_port,
            metrics_port=options.metrics_port,
            admin_key=AdminKey.from_environment(),
            tls=ServerTls.from_options(options.tls_cert, options.tls_key, options.tls_client_ca),
            restarts=Restarts(max_in_a_row=0),
            silence_s=options.silence_s,
            drain_timeout_s=options.drain_s,
            public_key=options.require_signature,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(status)


def check(repository: Path, *, gpu: str, public_key: Path | None) -> None:
    """Raise UserError where the repository is not whole, or not of the signer whose key is given, or the GPU
    that is asked for is not there.

    A GPU that the repository's own precision asks for is looked for when the server starts.
    """
    verify_loaded(repository, public_key)
    if gpu == "required" and not has_gpu():
        raise UserError(
            f"--gpu required: no NVIDIA driver in this container ({GPU_DEVICE} is missing). Start it with a "
            "GPU (docker run --gpus all; in Kubernetes a limit of nvidia.com/gpu), or leave --gpu at auto."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m diptych.serving.container",
        description="Run tritonserver over a repository as a container's first process.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--repository", default=REPOSITORY, type=Path, help="what `diptych export` made")
    add("--check-only", action="store_true", help="verify the repository's files, then exit")
    add("--gpu", default="auto", choices=("auto", "required"), help="required: do not start without one")
    add("--host", default=EVERY_ADDRESS, help="the address to listen on")
    add("--http-port", default=HTTP_PORT, type=int, help="0: any free one")
    add("--grpc-port", default=GRPC_PORT, type=int, help="0: any free one")
    add("--metrics-port", default=METRICS_PORT, type=int, help="0: any free one")
    add("--drain-s", default=DRAIN_TIMEOUT_S, type=float, help="given to requests in flight on SIGTERM")
    add("--silence-s", default=SILENCE_S, type=float, help="without any answer: hung, and the end")
    add("--require-signature", type=Path, metavar="PEM", help="only what this public key's owner has signed")
    add("--tls-cert", type=Path, help="PEM file: gRPC speaks TLS alone, HTTP stays on loopback")
    add("--tls-key", type=Path, help="PEM file, of the certificate's key")
    add("--tls-client-ca", type=Path, help="PEM file: callers must show certificates signed by it")
    return parser


if __name__ == "__main__":
    main()
