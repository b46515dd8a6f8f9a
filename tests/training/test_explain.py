"""Which modality decided, on a tiny model."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from diptych.evaluation.explain import Explanation, describe, explain, jensen_shannon
from diptych.evaluation.plots import open_picture, plot_explanation
from diptych.evaluation.predict import predict
from diptych.runs.run import Run
from diptych_serving.errors import UserError
from tests.helpers.catalogues import write_picture


@pytest.fixture
def blue_picture(tmp_path: Path) -> bytes:
    write_picture(tmp_path / "blue.png", "cold", seed=3)
    return (tmp_path / "blue.png").read_bytes()


def make_explanation(both: float, image_only: float, text_only: float) -> Explanation:
    """Probabilities of `cat`, the rest of which is `dog`."""
    values = {"both": both, "image_only": image_only, "text_only": text_only}
    return Explanation(answers={name: {"cat": value, "dog": 1 - value} for name, value in values.items()})


def test_the_answers_are_those_of_predict(tiny_run: Run, blue_picture: bytes) -> None:
    words = "a lamp and a fire number 7"
    answers = explain(tiny_run, blue_picture, words).answers
    asked = {"both": (blue_picture, words), "image_only": (blue_picture, ""), "text_only": (b"", words)}
    for name, (image, text) in asked.items():
        assert answers[name] == pytest.approx(predict(tiny_run, image, text), abs=1e-5)


def test_a_shift_is_what_a_modality_adds_to_the_other(tiny_run: Run, blue_picture: bytes) -> None:
    explanation = explain(tiny_run, blue_picture, "a lamp and a fire number 7")
    answers, shifts = explanation.answers, explanation.shifts
    for label in tiny_run.labels:
        assert shifts["image"][label] == answers["both"][label] - answers["text_only"][label]
        assert shifts["text"][label] == answers["both"][label] - answers["image_only"][label]
    assert sum(shifts["image"].values()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("both", "image_only", "text_only", "verdict"),
    [
        (0.9, 0.8, 0.2, "The image decided: alone it says cat, while the text alone says dog (80%)."),
        (0.9, 0.3, 0.8, "The text decided: alone it says cat, while the image alone says dog (70%)."),
        (0.9, 0.6, 0.8, "Either alone says cat; the text counts for more."),
        (0.9, 0.8, 0.6, "Either alone says cat; the image counts for more."),
        (0.9, 0.8, 0.8, "Either alone says cat; neither counts for more."),
        (0.6, 0.4, 0.3, "Only both together say cat: the image alone says dog (60%), "
                        "the text alone says dog (70%)."),
    ],
)  # fmt: skip
def test_the_verdict_says_which_modality_decided(
    both: float, image_only: float, text_only: float, verdict: str
) -> None:
    assert make_explanation(both, image_only, text_only).verdict == verdict


def test_with_one_modality_there_is_nothing_to_compare(tiny_run: Run, blue_picture: bytes) -> None:
    picture = explain(tiny_run, blue_picture, " ")
    assert list(picture.answers) == ["image_only"]
    assert picture.shifts == picture.distances == {}
    assert "The item has an image only, and that says" in describe(picture)
    assert "The item has a text only, and that says" in explain(tiny_run, b"", "snow and ice").verdict


def test_an_item_with_nothing_is_refused(tiny_run: Run) -> None:
    with pytest.raises(UserError, match="image and text: found both empty"):
        explain(tiny_run, b"", "  ")


def test_the_table_has_a_row_for_every_likely_label(tiny_run: Run, blue_picture: bytes) -> None:
    explanation = explain(tiny_run, blue_picture, "a lamp and a fire number 7")
    head, *rows = describe(explanation).split("\n")
    assert head.split("  ")[-1] == "text brings"
    assert {row.split()[0] for row in rows[:3]} == set(tiny_run.labels)
    assert rows[0].split()[0] == explanation.label
    assert len(set(map(len, [head, *rows[:3]]))) == 1
    assert explanation.verdict in rows


def test_only_the_likeliest_of_many_labels_are_listed() -> None:
    labels = {f"label {number}": 0.1 for number in range(10)}
    text = describe(Explanation(answers={"both": labels, "image_only": labels, "text_only": labels}), 4)
    assert "(6 less likely left out)" in text
    assert "label 4" not in text


def test_the_divergence_is_zero_for_equals_and_one_for_strangers() -> None:
    assert jensen_shannon([0.2, 0.8], [0.2, 0.8]) == 0
    assert jensen_shannon([1, 0], [0, 1]) == 1
    assert jensen_shannon([0.5, 0.5], [1, 0]) == pytest.approx(0.3113, abs=1e-4)


@pytest.mark.parametrize("words", ["a lamp and a fire number 7", ""])
def test_an_explanation_can_be_drawn(tiny_run: Run, blue_picture: bytes, tmp_path: Path, words: str) -> None:
    explanation = explain(tiny_run, blue_picture, words)
    picture = open_picture(blue_picture, tiny_run.preprocessor.spec)
    plot_explanation(picture, words, explanation.answers, explanation.verdict, tmp_path / "out.png")
    with Image.open(io.BytesIO((tmp_path / "out.png").read_bytes())) as drawn:
        assert drawn.width > 1000
