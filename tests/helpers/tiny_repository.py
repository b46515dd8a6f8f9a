"""Builds a deployable repository in a second: real configs and preprocessor, tiny TorchScript models.

Not trained, but not constant either: each class's score depends on the image and on the text.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.helpers.repository_files import LABELS, lay_out_repository, write_manifest

FEATURES = 512


class TinyImageEncoder(nn.Module):
    """Mean colour, repeated to 512 features; zeros where the image is absent."""

    def forward(self, pixel_values: Tensor, image_present: Tensor) -> Tensor:
        colour = pixel_values.float().mean(dim=[2, 3]) / 255
        features = colour.repeat(1, 171)[:, :512]
        return torch.where(image_present, features, torch.zeros_like(features))


class SlowImageEncoder(TinyImageEncoder):
    """Tens of milliseconds a batch, as a real one."""

    def forward(self, pixel_values: Tensor, image_present: Tensor) -> Tensor:
        colour = pixel_values.float().mean(dim=[2, 3]) / 255
        busy = torch.ones(256, 256) * (1 + colour.mean())  # of an input, or freezing would work it out
        for _ in range(20):
            busy = torch.mm(busy, busy).clamp(0.0, 1.0)
        features = (colour + 0 * busy.mean()).repeat(1, 171)[:, :512]
        return torch.where(image_present, features, torch.zeros_like(features))


class TinyTextEncoder(nn.Module):
    """Bag of embeddings over the real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, FEATURES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor) -> Tensor:
        return (self.embedding(input_ids) * attention_mask.unsqueeze(-1)).sum(dim=1)


class TinyFusionHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * FEATURES, len(LABELS))

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        return self.linear(torch.cat([image_features, text_features], dim=1)).softmax(dim=1)


MODELS = {"image_encoder": TinyImageEncoder, "text_encoder": TinyTextEncoder, "fusion_head": TinyFusionHead}


def build_tiny_repository(to: Path, **manifest: object) -> Path:
    """Write version 1 of every model under `to`, which must not exist yet.

    manifest  more of what the manifest says, such as the target
    """
    lay_out_repository(to)
    torch.manual_seed(0)
    for name, model_type in MODELS.items():
        script_to(to / name / "1/model.pt", model_type())
    write_manifest(to, **manifest)
    return to


def script_to(path: Path, model: nn.Module) -> None:
    with torchscript_without_warnings():
        torch.jit.freeze(torch.jit.script(model.eval())).save(str(path))


def load_script(path: Path) -> torch.jit.ScriptModule:
    with torchscript_without_warnings():
        return torch.jit.load(path)


@contextlib.contextmanager
def torchscript_without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        yield
