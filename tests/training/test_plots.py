"""Strings of users in plots: as they are, wrapped and cut to fit. A letter without a font is a box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from diptych.analysis.ablation import Trial
from diptych.analysis.ablation_report import plot_ablation, score_table
from diptych.analysis.doubtful import Suspect, plot_suspects
from diptych.data.items import Item
from diptych.evaluation.drawn_text import MISSING, drawable, fit
from diptych.evaluation.plots import plot_confusion, plot_explanation, plot_prediction
from diptych.evaluation.report import figures
from diptych.location import Location
from diptych_serving.preprocessing import PreprocessingSpec

NOBODYS = "\U000103a0"  # Old Persian
LABELS = [
    "$$ cheap",
    "from $5 to $10",
    r"x_y^2 \frac{1}{2}",
    "a very long category that somebody has typed with all the details that there are, and more",
    "averyverylongwordwithoutanyspaceinitthathastobebroken" * 3,
    "أثاث ومنزل",
    "[/bold] $",
    f"{NOBODYS} e\u0301 \x00 \ud800",
]
TEXT = " ".join(LABELS) * 3


def inches(text: str, size: float) -> float:
    width, _, _ = RendererAgg(1, 1, 288).get_text_width_height_descent(text, FontProperties(size=size), False)
    return width / 288


@pytest.mark.parametrize("text", [TEXT, *LABELS, "W" * 500, "i" * 500, "一" * 500, "a\nb\tc"])
@pytest.mark.parametrize(("width", "lines"), [(1.2, 1), (2.5, 3)])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_no_line_is_wider_than_its_place(text: str, width: float, lines: int) -> None:
    fitted = fit(text, width, size=11, lines=lines).split("\n")
    assert 1 <= len(fitted) <= lines
    assert all(inches(line, 11) <= width for line in fitted)
    is_whole = "".join(drawable(text).split()) == "".join("".join(fitted).split())
    assert is_whole is not fitted[-1].endswith("…")


def test_lines_break_at_spaces_where_there_are_any() -> None:
    assert fit("a short text on two lines", 1.2, lines=2) == "a short text on\ntwo lines"


def test_a_letter_that_no_font_has_is_a_box_and_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert drawable(f"an {NOBODYS}\ufe0f e\u0301") == f"an {MISSING} é"
    drawable(NOBODYS)
    assert capsys.readouterr().err.count("no font on this machine has") <= 1
    assert fit(f"an {NOBODYS}", 3, is_svg=True) == f"an {NOBODYS}"


def test_a_dollar_is_drawn_as_a_dollar() -> None:
    figure = Figure()
    figure.text(0, 0, "from $5 to $10")
    assert "from $5 to $10" in figures.to_svg(figure, "prices", "prices")


def test_every_plot_takes_any_string(tmp_path: Path) -> None:
    probabilities = {label: 1 / len(LABELS) for label in LABELS}
    answers = dict.fromkeys(("both", "image_only", "text_only"), probabilities)
    item = Item(table=Location("t.csv"), line=2, image=None, text=TEXT, category=LABELS[0])
    suspect = Suspect(item=item, suggested=LABELS[3], own_probability=0.1, suggested_probability=0.9)
    score = {name: {"accuracy": 0.5, "macro_f1": 0.5} for name in answers}
    results = {label: [Trial(score, {}, {})] for label in LABELS}

    plot_prediction(None, TEXT, probabilities, tmp_path / "prediction.png", truth=LABELS[3])
    plot_explanation(None, TEXT, answers, TEXT, tmp_path / "explanation.png")
    plot_confusion(np.eye(len(LABELS), dtype=np.int64), LABELS, tmp_path / "confusion.png")
    plot_suspects([suspect], PreprocessingSpec(image_size_px=32, max_tokens=8), tmp_path / "suspects.png")
    plot_ablation(results, {"$": {"accuracy": 0.5}}, tmp_path / "ablation.png")
    assert score_table(results, {}).row_count == len(LABELS)
    truths = figures.draw_truths((TEXT, LABELS[1]), np.ones((2, 3), np.float32), np.ones((2, 3), bool))
    assert "from $5 to $10" in figures.to_svg(truths, "truths", "truths")
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width < 2500, path


def test_of_many_categories_the_likeliest_are_drawn(tmp_path: Path) -> None:
    sizes = {}
    for count in (10, 1000):
        path = tmp_path / f"{count}.png"
        plot_prediction(None, "", {f"category {index}": 1 / count for index in range(count)}, path)
        with Image.open(path) as picture:
            sizes[count] = picture.size
    assert sizes[10] == sizes[1000]
