"""The command `diptych-client`: asks a served classifier from the shell."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Optional

from diptych_client import __version__
from diptych_client.answer import Answer
from diptych_client.client import DEFAULT_TIMEOUT_S, Client
from diptych_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    InvalidInput,
    ModelNotReady,
    Overloaded,
    ServerFault,
)

DEFAULT_URL = "grpc://127.0.0.1:8001"
BAR_WIDTH = 30

EXIT_CODES = {
    ServerFault: 1,
    InvalidInput: 2,  # argparse's own code for wrong usage
    ConnectionFailed: 3,
    DeadlineExceeded: 4,
    Overloaded: 5,
    ModelNotReady: 6,
}

EPILOG = """\
environment:
  DIPTYCH_URL        the server, where --url is not given
  DIPTYCH_TIMEOUT_S  the timeout, where --timeout-s is not given

exit codes:
  0  answered
  1  the server failed
  2  wrong usage, or an item that cannot be classified
  3  no connection
  4  no answer in time
  5  the server is overloaded: try again later
  6  the model is not ready
"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        with Client(arguments.url, timeout_s=arguments.timeout_s) as client:
            arguments.run(client, arguments)
    except DiptychError as error:
        print(f"diptych-client: {error}", file=sys.stderr)
        return EXIT_CODES[type(error)]
    except KeyboardInterrupt:
        return 130  # what shells report for SIGINT
    return 0


def run_classify(client: Client, arguments: argparse.Namespace) -> None:
    image = sys.stdin.buffer if arguments.image == "-" else arguments.image
    answer = client.classify(image=image, text=arguments.text)
    print(_to_json(dataclasses.asdict(answer)) if arguments.json else format_answer(answer))


def run_labels(client: Client, arguments: argparse.Namespace) -> None:
    labels = client.labels
    print(_to_json(labels) if arguments.json else "\n".join(labels))


def run_health(client: Client, arguments: argparse.Namespace) -> None:
    """An inference, not a health URL: those stay green when a model's process has died."""
    started_s = time.perf_counter()
    answer = client.classify(text="health")
    health = {
        "is_ready": True,
        "model_version": answer.model_version,
        "num_labels": len(answer.probabilities),
        "duration_ms": round(1000 * (time.perf_counter() - started_s), 1),
    }
    if arguments.json:
        print(_to_json(health))
    else:
        print("ready: model version {model_version}, {num_labels} labels, {duration_ms} ms".format(**health))


def format_answer(answer: Answer) -> str:
    """The label, then a bar for every label, the most probable first."""
    block = "█" if _can_print("█") else "#"
    width = max(len(label) for label in answer.probabilities)
    ranked = sorted(answer.probabilities.items(), key=lambda item: -item[1])
    lines = [f"{answer.label} {answer.score:.3f}", ""]
    for label, probability in ranked:
        bar = block * round(BAR_WIDTH * probability)
        lines.append(f"{label:<{width}}  {probability:.3f}  {bar}".rstrip())
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--url",
        default=os.environ.get("DIPTYCH_URL", DEFAULT_URL),
        help="grpc://host:port or http://host:port (default: %(default)s)",
    )
    common.add_argument(
        "--timeout-s",
        type=float,
        default=os.environ.get("DIPTYCH_TIMEOUT_S", str(DEFAULT_TIMEOUT_S)),
        metavar="SECONDS",
        help="total time for the call (default: %(default)s)",
    )
    common.add_argument("--json", action="store_true", help="print one line of JSON")

    parser = argparse.ArgumentParser(
        prog="diptych-client",
        description="Ask a served Diptych classifier.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    classify = commands.add_parser("classify", parents=[common], help="classify a picture, words, or both")
    classify.add_argument("image", nargs="?", help="an image file; - reads it from standard input")
    classify.add_argument("--text", help="a few words about the item")
    classify.set_defaults(run=run_classify)

    labels = commands.add_parser("labels", parents=[common], help="list the labels, in order")
    labels.set_defaults(run=run_labels)

    health = commands.add_parser("health", parents=[common], help="see whether the model answers")
    health.set_defaults(run=run_health)
    return parser


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=not _can_print("é█"))


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
