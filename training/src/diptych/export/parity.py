"""The gate before anything is written: every form of the model gives the same answers on real rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diptych.data.items import Item
from diptych.dataset import to_inputs
from diptych.errors import UserError
from diptych.export.torchscript import Parts, run_parts
from diptych.models.classifier import Inputs
from diptych.preprocessing import InvalidInput, Preprocessor, Row
from diptych.progress import track

BATCH_SIZES = (1, 2, 7)
MAX_DIFFERENCE = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """The largest distance of one form's probabilities from the eager model's, over all cases."""

    form: str
    num_rows: int
    max_difference: float
    label_agreement: float


def sample_rows(items: Sequence[Item], preprocessor: Preprocessor) -> dict[str, list[Row]]:
    """Real rows in every shape that serving meets, by the name of the case."""
    complete = [item for item in items if item.image and item.text]
    pairs = [(item.read_image(), item.text) for item in complete[: max(BATCH_SIZES)]]
    if not pairs:
        raise UserError("export needs validation items with both a picture and a text for its parity check")
    long_text = f"{pairs[0][1]} " + "and so on " * preprocessor.spec.max_tokens
    cases = {
        "both": pairs,
        "short text": [(image, text.split()[0]) for image, text in pairs],
        "full token length": [(image, long_text) for image, _ in pairs],
        "image only": [(image, "") for image, _ in pairs],
        "text only": [(b"", text) for _, text in pairs],
        "mixed": [
            (image * (index % 3 != 1), text * (index % 3 != 2)) for index, (image, text) in enumerate(pairs)
        ],
    }
    return {
        name: [_valid(row) for row in preprocessor.rows([(image, text.encode()) for image, text in case])]
        for name, case in cases.items()
    }


def expect(eager: Parts, rows: dict[str, list[Row]]) -> list[tuple[Inputs, Tensor]]:
    """Batches of 1, 2 and 7 rows, each with the eager model's probabilities."""
    return [(batch, run_parts(eager, batch)) for batch in _batches(rows)]


def measure_parity(form: str, parts: Parts, expectations: Sequence[tuple[Inputs, Tensor]]) -> Parity:
    """Compare one form of the model with the eager one."""
    differences, agreements = [], []
    for batch, expected in track(expectations, f"Comparing {form}", len(expectations)):
        found = run_parts(parts, batch)
        differences.append((expected - found).abs().max().item())
        agreements.append(expected.argmax(1) == found.argmax(1))
    agreement = torch.cat(agreements)
    return Parity(
        form=form,
        num_rows=len(agreement),
        max_difference=max(differences),
        label_agreement=agreement.float().mean().item(),
    )


def require_parity(parity: Parity) -> None:
    """Stop the export on a mismatch."""
    if not parity.max_difference <= MAX_DIFFERENCE:  # a NaN fails too
        raise UserError(
            f"parity: {parity.form} differs from the eager model by {parity.max_difference:.2e} "
            f"in a probability; at most {MAX_DIFFERENCE:.0e} is accepted. Nothing was written."
        )


def _batches(rows: dict[str, list[Row]]) -> Iterator[Inputs]:
    for case in rows.values():
        for batch_size in BATCH_SIZES:
            for start in range(0, len(case), batch_size):
                yield to_inputs(case[start : start + batch_size])


def _valid(row: Row | InvalidInput) -> Row:
    if isinstance(row, InvalidInput):
        raise UserError(f"export: a validation item is refused: {row}")
    return row
