"""Where a run's items come from."""

from __future__ import annotations

import dataclasses

from diptych.data.location import Location


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Tables with image_path (in Parquet also image, its bytes), description and category.

    train_csv, val_csv, test_csv: CSV, also in gzip, or Parquet by its ending .parquet; a local path, or any
    URL that fsspec has a filesystem for, such as s3://bucket/train.parquet. docs/inputs.md says what they may
    hold.

    labels: the categories, in the order of the model's outputs; None: those of train_csv, sorted.

    check_images: decode every image before anything is computed, so that all bad ones are reported at once.
    It reads all data once more, which for a large remote set takes long. false: a bad image is found when it
    is read, in mid-training if so, and ends the run with the number of its row.
    """

    train_csv: Location
    val_csv: Location
    test_csv: Location | None = None
    labels: list[str] | None = None
    skip_bad_rows: bool = False
    check_images: bool = True
