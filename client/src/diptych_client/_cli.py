"""The command `diptych-client`: asks a served classifier from the shell."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from diptych_client import __version__
from diptych_client._answer import Answer
from diptych_client._client import DEFAULT_TIMEOUT_S, Client
from diptych_client._environment import DEFAULT_URL, MissingExtra, headers_of, needs_extra, tls_of
from diptych_client._errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    InvalidInput,
    ModelNotReady,
    NotAllowed,
    Overloaded,
    ServerFault,
)

BAR_WIDTH = 30

EXIT_CODES = {
    ServerFault: 1,
    InvalidInput: 2,  # argparse's own code for wrong usage
    ConnectionFailed: 3,
    DeadlineExceeded: 4,
    Overloaded: 5,
    ModelNotReady: 6,
    NotAllowed: 7,
}

EPILOG = """\
environment:
  DIPTYCH_URL               the server, if --url is not given
  DIPTYCH_TIMEOUT_S         the timeout, if --timeout-s is not given
  DIPTYCH_HEADERS           sent with every request: name=value,name=value (percent-encoded: , is %2C)
  DIPTYCH_CA_FILE           the authorities to trust, for grpcs:// and https:// (PEM)
  DIPTYCH_CERTIFICATE_FILE  the client certificate, if the server asks for one (PEM)
  DIPTYCH_KEY_FILE          its private key (PEM)

exit codes:
  0  answered
  1  the server or this machine failed
  2  wrong usage, or an item that cannot be classified (score: no row could be)
  3  no connection
  4  no answer in time
  5  the server is overloaded: try again later
  6  the model is not ready
  7  not allowed: a missing or expired token
"""

SCORE_EPILOG = """\
The table has the columns image_path (absolute, or relative to the table) and description; Parquet may hold
the images themselves in a column image. Rows that cannot be classified are listed in OUT's name with
.errors.csv, with row number, field and reason. The job stops at every failure that is not a row's own, and
the exit code says which. The same command resumes it.
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        with _open_client(arguments) as client:
            code: int = arguments.run(client, arguments)
        sys.stdout.flush()  # here, so that a closed pipe is noticed
    except DiptychError as error:
        print(f"diptych-client: {error}", file=sys.stderr)
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    except MissingExtra as error:
        print(f"diptych-client: {error}", file=sys.stderr)
        return EXIT_CODES[InvalidInput]
    except BrokenPipeError:  # `diptych-client labels | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python flushes again at exit
        return 141  # a shell's status for SIGPIPE
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"diptych-client: {error}", file=sys.stderr)
        return EXIT_CODES[ServerFault]
    except KeyboardInterrupt:
        return 130  # a shell's status for SIGINT
    return code


def run_classify(client: Client, arguments: argparse.Namespace) -> int:
    image = sys.stdin.buffer if arguments.image == "-" else arguments.image
    answer = client.classify(
        image=image, text=arguments.text, min_score=arguments.min_score, explain=arguments.explain
    )
    print(_to_json(dataclasses.asdict(answer)) if arguments.json else format_answer(answer))
    return 0


def run_score(client: Client, arguments: argparse.Namespace) -> int:
    """Failed rows do not fail the job, unless no row was scored."""
    with needs_extra("score"):
        from diptych_client._score import score_table
        from diptych_client._score._job import progress_bar

    with progress_bar() as show:
        summary = score_table(
            client,
            arguments.table,
            arguments.out,
            concurrency=arguments.concurrency,
            rows_per_checkpoint=arguments.checkpoint_rows,
            skip_faults=arguments.skip_faults,
            on_progress=show,
        )
    if arguments.json:
        print(_to_json(dataclasses.asdict(summary)))
    else:
        print(f"{summary.num_scored:,} rows scored: {summary.out}")
        print(f"{summary.num_failed:,} rows failed: {summary.errors}")
    return EXIT_CODES[InvalidInput] if summary.num_failed and not summary.num_scored else 0


def run_demo(client: Client, arguments: argparse.Namespace) -> int:
    with needs_extra("demo"):
        from diptych_client._demo import serve_demo

    print(f"http://{arguments.host}:{arguments.port}/ (Ctrl-C ends it)", flush=True)
    serve_demo(client, host=arguments.host, port=arguments.port)
    return 0


def run_labels(client: Client, arguments: argparse.Namespace) -> int:
    labels = client.labels()
    print(_to_json(labels) if arguments.json else "\n".join(labels))
    return 0


def run_health(client: Client, arguments: argparse.Namespace) -> int:
    """An inference, because health URLs answer 200 even if a model process is dead."""
    health = client.health(deep=True)
    if health.error is not None:
        raise health.error
    answer = client.classify(text="health")
    found = {
        "is_ready": True,
        "model_version": answer.model_version,
        "num_labels": len(answer.probabilities),
        "duration_ms": round(health.duration_ms, 1),
    }
    if arguments.json:
        print(_to_json(found))
    else:
        print("ready: model version {model_version}, {num_labels} labels, {duration_ms} ms".format(**found))
    return 0


def format_answer(answer: Answer) -> str:
    """The label, then a bar for every label, the most probable first."""
    block = "█" if _can_print("█") else "#"
    width = max(len(label) for label in answer.probabilities)
    lines = [f"{answer.label or 'undecided:'} {answer.score:.3f}", ""]
    for label, probability in answer.top(len(answer.probabilities)):
        bar = block * round(BAR_WIDTH * probability)
        lines.append(f"{label:<{width}}  {probability:.3f}  {bar}".rstrip())
    if answer.explanation is not None:
        alone = {"image only": answer.explanation.image_only, "text only": answer.explanation.text_only}
        lines.append("")
        lines += [f"{name}: {part.top(1)[0].label} {part.score:.3f}" for name, part in alone.items() if part]
        lines.append(f"decided by: {answer.explanation.decided_by}")
    return "\n".join(lines)


def _open_client(arguments: argparse.Namespace) -> Client:
    return Client(
        arguments.url, timeout_s=arguments.timeout_s, headers=headers_of(os.environ), tls=tls_of(os.environ)
    )


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--url",
        default=os.environ.get("DIPTYCH_URL", DEFAULT_URL),
        help="grpc://host:port, http://host:port, grpcs:// and https:// with TLS, or local:REPOSITORY "
        "(default: %(default)s)",
    )
    common.add_argument(
        "--timeout-s",
        type=float,
        default=os.environ.get("DIPTYCH_TIMEOUT_S", str(DEFAULT_TIMEOUT_S)),
        metavar="SECONDS",
        help="total time for one call, retries included (default: %(default)s)",
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

    classify = commands.add_parser("classify", parents=[common], help="classify an image, a text, or both")
    classify.add_argument("image", nargs="?", help="an image file; - reads it from standard input")
    classify.add_argument("--text", help="the item's text")
    classify.add_argument(
        "--min-score", type=float, metavar="P", help="give no label if its probability is below this"
    )
    classify.add_argument(
        "--explain", action="store_true", help="also ask about each modality alone, to see which decided"
    )
    classify.set_defaults(run=run_classify)

    score = commands.add_parser("score", parents=[common], help="classify a whole table", epilog=SCORE_EPILOG)
    score.add_argument("table", type=Path, help="a CSV or Parquet file")
    score.add_argument("--out", type=Path, required=True, metavar="OUT", help="the Parquet file to write")
    score.add_argument(
        "--concurrency", type=int, default=32, metavar="N", help="calls in flight (default: 32)"
    )
    score.add_argument(
        "--checkpoint-rows", type=int, default=1000, metavar="N", help="rows in a checkpoint (default: 1000)"
    )
    score.add_argument(
        "--skip-faults",
        action="store_true",
        help="list rows that cause a server error, if the server still answers others; default: stop",
    )
    score.set_defaults(run=run_score)

    labels = commands.add_parser("labels", parents=[common], help="list the labels, in order")
    labels.set_defaults(run=run_labels)

    health = commands.add_parser("health", parents=[common], help="check that the model answers")
    health.set_defaults(run=run_health)

    demo = commands.add_parser("demo", parents=[common], help="serve a web page to try the model")
    demo.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: this machine's own)"
    )
    demo.add_argument("--port", type=int, default=7860, help="the port to listen on (default: %(default)s)")
    demo.set_defaults(run=run_demo)
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
