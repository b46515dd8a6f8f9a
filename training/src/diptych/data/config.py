"""Where a run's items come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """CSV files with the columns image_path, description, category.

    labels: the categories, in the order of the model's outputs; None: those of train_csv, sorted.
    """

    train_csv: Path
    val_csv: Path
    test_csv: Path | None = None
    labels: list[str] | None = None
    skip_bad_rows: bool = False
