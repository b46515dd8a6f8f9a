"""The results of a cross-validation as a table in plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych.evaluation.predict import CONDITION_NAMES


def describe(results: Mapping[str, Any]) -> str:
    """Accuracy, macro-F1 and ECE with standard errors, of the model and of the baselines."""
    lines = [f"{'out of fold':<28}{'condition':<14}{'accuracy':>15}{'macro-F1':>15}{'ECE':>15}{'items':>8}"]
    for model, conditions in {"model": results["out_of_fold"], **results["baselines"]}.items():
        for name, scores in conditions.items():
            cells = "".join(_cell(scores, key) for key in ("accuracy", "macro_f1", "ece"))
            lines.append(f"{model:<28}{CONDITION_NAMES[name]:<14}{cells}{scores['num_items']:>8,}")
    both = results["out_of_fold"]["both"]
    once = both["each_group_once"]
    lines.append(
        f"Near-duplicates count as one item: accuracy {_number(once, 'accuracy')}, macro-F1 "
        f"{_number(once, 'macro_f1')} ({both['num_groups']:,} groups among {both['num_items']:,} items)"
    )
    return "\n".join(lines)


def _cell(scores: Mapping[str, Any], key: str) -> str:
    return f"{_number(scores, key):>15}"


def _number(scores: Mapping[str, Any], key: str) -> str:
    return f"{scores[key]:.3f} ± {scores[f'{key}_error']:.3f}"
