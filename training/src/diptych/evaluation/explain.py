"""Which modality decided: compares the answer to an item with the answers to its image and its text alone.

The model was trained to answer one modality alone, but not none. So shifts are differences between real
answers, not Shapley values.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import ArrayLike

from diptych.evaluation.predict import CONDITION_NAMES, CONDITIONS, predict_inputs, read_item
from diptych.models.classifier import Inputs
from diptych.runs.run import Run

# condition -> the modality whose absence it shows
TAKEN_AWAY = {"text_only": "image", "image_only": "text"}
BRINGS = {"image": "image brings", "text": "text brings"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """A run's answers to one item.

    answers  condition -> label -> calibrated probability. `both` first if the item has both; an item
             with one modality has only that condition.
    """

    answers: dict[str, dict[str, float]]

    @property
    def label(self) -> str:
        """The answer to the whole item."""
        return _top(self._whole)

    @property
    def shifts(self) -> dict[str, dict[str, float]]:
        """Modality -> label -> probability that it adds to the answer of the other modality alone."""
        return {
            modality: {label: self._whole[label] - value for label, value in self.answers[without].items()}
            for without, modality in TAKEN_AWAY.items()
            if without in self.answers and len(self.answers) > 1
        }

    @property
    def distances(self) -> dict[str, float]:
        """Modality -> how much the answer changes without it: 0 not at all, 1 completely."""
        return {
            modality: jensen_shannon(list(self._whole.values()), list(self.answers[without].values()))
            for without, modality in TAKEN_AWAY.items()
            if without in self.answers and len(self.answers) > 1
        }

    @property
    def verdict(self) -> str:
        """A sentence on which modality decided."""
        if len(self.answers) == 1:
            given = "an image" if "image_only" in self.answers else "a text"
            return f"The item has {given} only, and that says {_say(self._whole)}."
        image, text = _say(self.answers["image_only"]), _say(self.answers["text_only"])
        image_agrees, text_agrees = (
            _top(self.answers[name]) == self.label for name in ("image_only", "text_only")
        )
        if image_agrees and text_agrees:
            return f"Either alone says {self.label}; {self._what_counts_more()}."
        if image_agrees:
            return f"The image decided: alone it says {self.label}, while the text alone says {text}."
        if text_agrees:
            return f"The text decided: alone it says {self.label}, while the image alone says {image}."
        return (
            f"Only both together say {self.label}: the image alone says {image}, the text alone says {text}."
        )

    @property
    def _whole(self) -> dict[str, float]:
        return next(iter(self.answers.values()))

    def _what_counts_more(self) -> str:
        image, text = (self.shifts[name][self.label] for name in ("image", "text"))
        if abs(image - text) < 0.01:
            return "neither counts for more"
        return f"the {'image' if image > text else 'text'} counts for more"


def explain(run: Run, image: bytes, text: str) -> Explanation:
    """Ask about the whole item, and about each modality alone.

    image  one encoded image file; empty: no image
    text   empty: no text
    """
    item = read_item(run, image, text)
    has_image, has_text = bool(item.image_present), bool(item.text_present)
    names = list(CONDITIONS) if has_image and has_text else ["image_only" if has_image else "text_only"]
    shown = torch.tensor([CONDITIONS[name] for name in names])
    batch = Inputs(*(tensor.expand(len(names), *tensor.shape[1:]) for tensor in item))
    probabilities = predict_inputs(run, batch.keep(image=shown[:, 0], text=shown[:, 1])).tolist()
    return Explanation(
        answers={
            name: dict(zip(run.labels, row, strict=True))
            for name, row in zip(names, probabilities, strict=True)
        }
    )


def jensen_shannon(first: ArrayLike, second: ArrayLike) -> float:
    """Divergence of two distributions in bits: 0 equal, 1 without a common outcome (Lin, 1991, eq. 3.1)."""
    p, q = np.asarray(first, np.float64), np.asarray(second, np.float64)
    middle = (p + q) / 2
    parts = [(each[each > 0] * np.log2(each[each > 0] / middle[each > 0])).sum() for each in (p, q)]
    return float(np.clip(sum(parts) / 2, 0, 1))


def describe(explanation: Explanation, num_labels: int = 6) -> str:
    """A table of the likely labels of each answer, and the verdict."""
    answers, shifts = explanation.answers, explanation.shifts
    whole = next(iter(answers.values()))
    likeliest = sorted(whole, key=lambda label: -max(answer[label] for answer in answers.values()))
    labels = sorted(likeliest[:num_labels], key=lambda label: -whole[label])
    width = max(map(len, labels))
    titles = [f"{CONDITION_NAMES[name]:>7}" for name in answers] + [BRINGS[modality] for modality in shifts]
    lines = [" " * width + "".join(f"  {title}" for title in titles)]
    for label in labels:
        cells = [f"{answer[label]:.1%}" for answer in answers.values()]
        cells += [f"{100 * shift[label]:+.1f}" for shift in shifts.values()]
        row = (f"  {cell:>{len(title)}}" for cell, title in zip(cells, titles, strict=True))
        lines.append(f"{label:<{width}}" + "".join(row))
    if hidden := len(whole) - len(labels):
        lines.append(f"({hidden} less likely left out)")
    lines += ["", explanation.verdict]
    if distances := explanation.distances:
        moved = ", ".join(f"{value:.2f} without the {modality}" for modality, value in distances.items())
        lines.append(f"The answer moves by {moved} (Jensen-Shannon divergence, 0 to 1).")
        lines.append("What a modality brings is in points, against the other one alone.")
    return "\n".join(lines)


def _top(answer: dict[str, float]) -> str:
    return max(answer, key=lambda label: answer[label])


def _say(answer: dict[str, float]) -> str:
    return f"{_top(answer)} ({answer[_top(answer)]:.0%})"
