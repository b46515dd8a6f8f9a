"""`diptych predict` and `explain`: one item, in this process."""

from __future__ import annotations

from pathlib import Path

import typer

from diptych.cli.options import (
    ImageOption,
    PlotOption,
    RunArgument,
    TextOption,
)
from diptych_serving.errors import UserError

app = typer.Typer()


@app.command()
def predict(
    run: RunArgument,
    image: ImageOption = None,
    text: TextOption = "",
    plot: PlotOption = None,
) -> None:
    """Classify one item in process."""
    from diptych.evaluation.plots import open_picture, plot_prediction
    from diptych.evaluation.predict import predict
    from diptych.runs.run import load_run

    data = _read_picture(image)
    loaded = load_run(run)
    probabilities = predict(loaded, data, text)
    for label, probability in probabilities.items():
        typer.echo(f"{label:<20} {probability:7.2%}")
    if plot:
        picture = open_picture(data, loaded.preprocessor.spec)
        plot_prediction(picture, text, probabilities, plot)


@app.command()
def explain(
    run: RunArgument,
    image: ImageOption = None,
    text: TextOption = "",
    plot: PlotOption = None,
) -> None:
    """Show whether image or text decided: the answer to one item, and to each modality alone."""
    from diptych.evaluation.explain import describe, explain
    from diptych.evaluation.plots import open_picture, plot_explanation
    from diptych.runs.run import load_run

    data = _read_picture(image)
    loaded = load_run(run)
    explanation = explain(loaded, data, text)
    typer.echo(describe(explanation))
    if plot:
        picture = open_picture(data, loaded.preprocessor.spec)
        plot_explanation(picture, text, explanation.answers, explanation.verdict, plot)


def _read_picture(image: Path | None) -> bytes:
    if image is None:
        return b""
    if not image.is_file():
        raise UserError(f"--image {image}: no such file")
    try:
        data = image.read_bytes()
    except OSError as error:
        raise UserError(f"--image {image}: cannot read it: {error.strerror}") from None
    if not data:  # 0 bytes would count as no image
        raise UserError(f"--image {image}: found an empty file; accepted: an image file")
    return data
