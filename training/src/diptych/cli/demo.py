"""`diptych demo`: serve a repository and classify held-out items as a production service would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diptych.data.catalogue import read_split
from diptych.data.items import Item
from diptych.evaluation.plots import open_picture, plot_prediction
from diptych.runs.run import Run
from diptych_client import Answer, Client
from diptych_serving.errors import UserError
from diptych_serving.progress import track
from diptych_serving.server import Server, ServerConfig

NUM_ITEMS = 11
# How the held-out items are sent: name of the column -> (index of the client, with image, with text)
QUESTIONS = {
    "both, gRPC": ("grpc", True, True),
    "both, HTTP": ("http", True, True),
    "image only": ("grpc", True, False),
    "text only": ("http", False, True),
}


def demonstrate(run: Run, repository: Path, plot: Path) -> None:
    """Serve, classify over gRPC and HTTP, print answers beside the truth, draw one item, stop."""
    items = choose_items(run)
    with Server(repository, ServerConfig.on_free_ports()) as server:
        server.wait_until_ready()
        with Client(server.grpc_url) as grpc, Client(server.http_url) as http:
            clients = {"grpc": grpc, "http": http}
            rows = [
                [ask(clients[wire], item, image, text) for wire, image, text in QUESTIONS.values()]
                for item in track(items, "Classifying held-out items", len(items))
            ]
    Console(width=max(Console().width, 136)).print(draw_table(items, rows))
    item, answer = items[0], rows[0][0]
    picture = open_picture(item.read_image(), run.preprocessor.spec)
    plot_prediction(picture, item.text, answer.probabilities, plot, truth=item.category)
    typer.echo(
        f"{plot} shows the first item beside its probabilities.\n\n"
        "Try next\n"
        "  make serve                                 keep the server running, then, in another terminal:\n"
        "  .venv/bin/diptych-client classify --url grpc://127.0.0.1:8001 --text 'a ripe banana'\n"
        f"  .venv/bin/diptych predict {_relative(run.directory)} --text 'an old oak' --plot out.png\n"
        "  .venv/bin/diptych train training/configs/quickstart.toml --out runs/attention "
        "--set fusion.kind=attention"
    )


def choose_items(run: Run) -> list[Item]:
    """The first held-out item of each category that has both modalities, categories in order."""
    data = run.config.data
    if data.test_csv is None:
        raise UserError(f"{run.directory}: has no data.test_csv to take held-out items from")
    items = read_split(data.test_csv, data, labels=run.labels, preprocessor=run.preprocessor)
    complete = [item for item in items if item.image and item.text]
    first = {item.category: item for item in reversed(complete)}
    return [first[label] for label in run.labels if label in first][:NUM_ITEMS]


def ask(client: Client, item: Item, image: bool, text: bool) -> Answer:
    """One request, as a service would send it."""
    return client.classify(
        image=item.read_image() if image else None, text=item.text if text else None, timeout_s=30
    )


def draw_table(items: Sequence[Item], rows: Sequence[Sequence[Answer]]) -> Table:
    """Answers beside the truth; right ones green."""
    table = Table(title="Held-out items, answered by tritonserver", title_justify="left")
    table.add_column("text", no_wrap=True, overflow="ellipsis", max_width=24)
    for column in ("truth", *QUESTIONS):
        table.add_column(column, no_wrap=True)
    for item, answers in zip(items, rows, strict=True):
        cells = []
        for answer in answers:
            colour = "green" if answer.label == item.category else "red"
            cells.append(f"[{colour}]{escape(str(answer.label))}[/] {answer.score:.2f}")
        table.add_row(escape(item.text), escape(item.category), *cells)
    return table


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
