"""Builds a deployable repository in a second: real configs and preprocessor, tiny TorchScript models.

Not trained, but not constant either: each class's score depends on the picture and on the words.
"""

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from diptych_serving import metering, preprocessing
from diptych_serving.repository.layout import MANIFEST_FILE, sha256

SOURCE = Path(__file__).parents[2] / "model_repository"
LABELS = ["animals", "food", "tools"]
SPEC = preprocessing.PreprocessingSpec(image_size_px=32, max_tokens=8)
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
    shutil.copytree(SOURCE, to)
    for model in to.iterdir():
        (model / "1").mkdir()
    for model in ("classifier", "tally"):
        (to / model / "1/labels.txt").write_text("".join(f"{label}\n" for label in LABELS))

    version = to / "preprocess/1"
    for step in ("preprocess", "tally"):
        (to / step / "model.py").rename(to / step / "1/model.py")
        shutil.copy(metering.__file__, to / step / "1/metering.py")
    preprocessing.save_snapshot(version)
    preprocessing.Preprocessor(SPEC, tiny_tokenizer().to_str()).save(version)

    torch.manual_seed(0)
    for name, model_type in MODELS.items():
        script_to(to / name / "1/model.pt", model_type())
    write_manifest(to, **manifest)
    return to


def write_manifest(repository: Path, **more: object) -> None:
    """Version 1's, as far as serving reads it: the checksums of all that is there now."""
    path = repository / "classifier/1" / MANIFEST_FILE
    path.unlink(missing_ok=True)
    files = sorted(file for file in repository.rglob("*") if file.is_file())
    checksums = {str(file.relative_to(repository)): sha256(file) for file in files}
    path.write_text(json.dumps({"version": 1, "labels": LABELS, "sha256": checksums, **more}))


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


def tiny_tokenizer() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "blue", "cat", "cake", "hammer"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer
