"""In fp32, every form of the model gives the same answers to rounding, in every shape that serving meets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diptych.data.dataset import to_inputs
from diptych.data.examples import Example, complete_pairs
from diptych.export.precision import Precision
from diptych.export.torchscript import Parts, run_parts
from diptych.models.classifier import Inputs
from diptych.models.fidelity import reference_embeddings, require_same
from diptych.models.projection import FEATURE_DIM
from diptych.models.text_encoder import TextEncoder
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import InvalidInput, Preprocessor, Row
from diptych_serving.progress import track

BATCH_SIZES = (1, 2, 7)
MAX_DIFFERENCE = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """The largest distance of one form's probabilities from the eager fp32 model's, over all rows."""

    form: str
    precision: str
    num_rows: int
    max_difference: float
    label_agreement: float


def sample_rows(examples: Sequence[Example], preprocessor: Preprocessor) -> dict[str, list[Row]]:
    """Rows in every shape that serving meets, by the name of the case. Real ones as far as there are any."""
    pairs = complete_pairs(examples, preprocessor.spec.image_size_px, max(BATCH_SIZES))
    long_text = f"{pairs[0][1]} " + "and so on " * preprocessor.spec.max_tokens
    cases: dict[str, Sequence[tuple[bytes, str]]] = {
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
    """Batches of each size, each with the eager model's probabilities."""
    return [(batch, run_parts(eager, batch)) for batch in _batches(rows)]


def measure_parity(
    form: str,
    parts: Parts,
    expectations: Sequence[tuple[Inputs, Tensor]],
    precision: Precision,
) -> Parity:
    """Compare one form of the model with the eager one."""
    differences, agreements = [], []
    for batch, expected in track(expectations, f"Comparing {form} ({precision})", len(expectations)):
        found = run_parts(parts, batch)
        differences.append((expected - found).abs().max().item())
        agreements.append(expected.argmax(1) == found.argmax(1))
    agreement = torch.cat(agreements)
    return Parity(
        form=form,
        precision=str(precision),
        num_rows=len(agreement),
        max_difference=max(differences),
        label_agreement=agreement.float().mean().item(),
    )


def is_equal(parity: Parity) -> bool:
    """Whether the answers differ by rounding alone; a NaN does not."""
    return parity.max_difference <= MAX_DIFFERENCE


def require_parity(parity: Parity) -> None:
    """Stop the export of an fp32 graph on a mismatch."""
    if not is_equal(parity):
        raise UserError(
            f"parity: {parity.form} differs from the eager model by {parity.max_difference:.2e} "
            f"in a probability; at most {MAX_DIFFERENCE:.0e} is accepted. Nothing was written."
        )


@torch.inference_mode()
def require_text_fidelity(
    encoder: TextEncoder, exported: torch.jit.ScriptModule, rows: dict[str, list[Row]]
) -> None:
    """Stop the export where the graph's features of padded texts are not those that transformers gives.

    Both sides of the parity gate share one mask: a wrong one is only seen here.
    """
    batch = to_inputs([row for case in ("both", "short text", "full token length") for row in rows[case]])
    inputs = batch.input_ids, batch.attention_mask
    found = exported(*inputs, torch.zeros(len(batch.input_ids), FEATURE_DIM))
    embeddings = reference_embeddings(encoder.backbone, *inputs)
    expected = encoder.projection(embeddings, batch.text_present)
    require_same(expected, found, "export: the text encoder's graph:")


def _batches(rows: dict[str, list[Row]]) -> Iterator[Inputs]:
    for case in rows.values():
        for batch_size in BATCH_SIZES:
            for start in range(0, len(case), batch_size):
                yield to_inputs(case[start : start + batch_size])


def _valid(row: Row | InvalidInput) -> Row:
    if isinstance(row, InvalidInput):
        raise UserError(f"export: a validation item is refused: {row}")
    return row
