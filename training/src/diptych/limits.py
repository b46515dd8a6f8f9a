"""Which images and texts a run takes: generous for the owner's own data, strict for a server's callers."""

from __future__ import annotations

import dataclasses

from diptych.preprocessing import Limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingLimits(Limits):
    """For files of one's own. Finite all the same: each reading process may take about a gigabyte."""

    max_image_bytes: int = 256 * 2**20
    max_jpeg_pixels: int = 400_000_000
    max_png_pixels: int = 200_000_000
    max_webp_pixels: int = 64_000_000
    max_gif_pixels: int = 64_000_000
    max_bmp_pixels: int = 200_000_000
    max_tiff_pixels: int = 100_000_000
    max_avif_pixels: int = 64_000_000
    max_heic_pixels: int = 64_000_000
    max_jpeg_coefficients: int = 2**28
    max_jpeg_scanned_samples: int = 4_000_000_000
    max_text_bytes: int = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """docs/inputs.md says what each limit is for, and what it costs. 0 pixels: the format is refused.

    training: of the commands that read your own files: train, evaluate, predict, explain, compare, doubt.

    serving: of the server, written into the repository by `diptych export`.
    """

    training: TrainingLimits = dataclasses.field(default_factory=TrainingLimits)
    serving: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raises ValueError for a limit below 0, or where no format is left."""
        for name, limits in (("training", self.training), ("serving", self.serving)):
            for key, value in dataclasses.asdict(limits).items():
                if value < 0:
                    raise ValueError(f"limits.{name}.{key}: found {value}; accepted: 0 or more")
            if not limits.formats:
                raise ValueError(f"limits.{name}: every format is refused; accepted: one above 0 pixels")
