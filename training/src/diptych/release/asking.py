"""Asks one version of a repository in this process, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from diptych.dataset import to_inputs
from diptych.errors import UserError
from diptych.export.torchscript import load_parts, run_parts
from diptych.preprocessing import InvalidInput, Preprocessor
from diptych.release.golden import Ask
from diptych.release.repository import STEPS


def ask_in_process(parts: Mapping[str, nn.Module], preprocessor: Preprocessor) -> Ask:
    """A function from image file and UTF-8 text to probabilities (C,) float32."""

    def ask(image: bytes, text: bytes) -> NDArray[np.float32]:
        (row,) = preprocessor.rows([(image, text)])
        if isinstance(row, InvalidInput):
            raise UserError(str(row))
        probabilities: NDArray[np.float32] = run_parts(parts, to_inputs([row]))[0].numpy()
        return probabilities

    return ask


def ask_files(repository: Path, version: int) -> Ask:
    """The same, of the files of one version."""
    directories = {step: repository / step / str(version) for step in STEPS}
    return ask_in_process(load_parts(directories), Preprocessor.load(directories[STEPS[0]]))
