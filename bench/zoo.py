"""The most used backbones by name: each is trained and exported as a small random model of its class.

    python -m bench.zoo --out docs/backbones.md
    python -m bench.zoo --images --quick
    python -m bench.zoo --scan                     # builds every name of timm, without weights

A row is trained for a step with frozen backbones and for two steps end to end, exported in fp32, and the
exported graphs are compared with the model on batches of other sizes. It downloads nothing.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig

from bench.zoo_names import IMAGES, TEXTS, ImageRow, TextRow
from diptych.config.sections import FusionConfig, ImageConfig, TextConfig, TrainConfig
from diptych.export.torchscript import Parts, eager_parts, to_torchscript
from diptych.models.backbones import build_classifier
from diptych.models.classifier import Classifier, Inputs
from diptych.models.image_backbones import build_image_encoder
from diptych.train.optimization import build_optimizer
from diptych_serving.errors import UserError
from diptych_serving.repository.layout import IMAGE_ENCODER, TEXT_ENCODER
from tests.helpers.text_families import MAX_TOKENS, save_architecture

QUICK_IMAGES = ("timm:mobilenetv3_large_100", "timm:vit_base_patch16_384", "timm:repvgg_a2")
QUICK_TEXTS = ("microsoft/mpnet-base", "Qwen/Qwen3-Embedding-0.6B", "google/fnet-base")
SIZES_PX = (224, 384)
MAX_DIFFERENCE = 1e-4  # in a feature; features are normalised to about 1
INTRODUCTION = """\
# Backbones

`python -m bench.zoo --out docs/backbones.md` makes this page; the same with `--scan` adds its last section.
Each name is tested as a small random model of its class: one training step with frozen backbones, two end to
end, an export in fp32, and a comparison of the export with the model. The result shows the largest difference
in a feature, which is about 1 in size. Nothing is downloaded.

Other names of timm, torchvision and transformers work too. What cannot work is refused in one sentence when
the model is built, before weights are loaded.

A repository of the hub whose config asks for its authors' own code (`auto_map`) is refused. The message names
the model type of transformers that replaces the code, if there is one.

[text_and_pairs.md](text_and_pairs.md) explains pooling, masks and pairs such as CLIP.
"""


def batch_of(num_rows: int, size_px: int, seed: int) -> Inputs:
    """Random rows with both modalities; texts of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, MAX_TOKENS + 1, (num_rows,), generator=generator)
    lengths[0] = 4  # one text is padded
    ids = torch.randint(5, 25, (num_rows, MAX_TOKENS), generator=generator)
    mask = (torch.arange(MAX_TOKENS) < lengths[:, None]).long()
    ids[:, 0] = 2
    ids[torch.arange(num_rows), lengths - 1] = 3
    pixels = torch.randint(0, 256, (num_rows, 3, size_px, size_px), dtype=torch.uint8, generator=generator)
    return Inputs(pixels, torch.ones(num_rows, dtype=torch.bool), ids * mask, mask)


def train_a_little(model: Classifier, size_px: int) -> None:
    """A step of the rest on frozen backbones, and two of all. Raises UserError where a loss is not finite."""
    model.train()
    optimizer, _ = build_optimizer(model, TrainConfig(lr=1e-4), num_steps=4)
    truth = torch.arange(4) % 3
    for step in range(3):
        batch = batch_of(4, size_px, step)
        if step == 0:
            with torch.no_grad():
                embeddings = model.embed(batch)
        loss = F.cross_entropy(model(batch if step else embeddings), truth)
        loss.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise UserError(f"its gradients are not finite in step {step}")
        optimizer.step()
        optimizer.zero_grad()


@torch.inference_mode()
def exported_difference(model: Classifier, size_px: int) -> float:
    """The largest difference in a feature between the model and its export. Raises UserError."""
    model.eval()
    parts = to_torchscript(model, batch_of(4, size_px, 10))
    difference = 0.0
    for num_rows in (1, 2, 7):
        batch = batch_of(num_rows, size_px, num_rows)
        expected, found = (features_of(each, batch) for each in (eager_parts(model), parts))
        difference = max(difference, (expected - found).abs().max().item())
    if not difference <= MAX_DIFFERENCE:
        raise UserError(f"the export differs by {difference:.1e}")
    return difference


def features_of(parts: Parts, batch: Inputs) -> Tensor:
    """(2, B, 512) float32: of images and of texts."""
    image = parts[IMAGE_ENCODER](batch.pixel_values, batch.image_present[:, None])
    return torch.stack([image, parts[TEXT_ENCODER](batch.input_ids, batch.attention_mask, image)])


def try_pair(image: ImageConfig, text: TextConfig) -> str:
    """What a row says: 'works (difference)', or why not."""
    torch.manual_seed(0)
    try:
        model = build_classifier(image, text, FusionConfig(), 3)
        train_a_little(model, image.size_px)
        return f"works ({exported_difference(model, image.size_px):.0e})"
    except UserError as error:
        return f"refused: {str(error).splitlines()[0].partition('. ')[0]}"


def sizes_of(name: str) -> str:
    """Of 224 and 384 pixels, those that a name takes, and how long its embedding is."""
    taken = []
    for size_px in SIZES_PX:
        try:
            with torch.device("meta"):
                encoder = build_image_encoder(ImageConfig(backbone=name, weights="random", size_px=size_px))
        except UserError as error:
            taken.append(f"{size_px}: {str(error).partition(': ')[2]}")
        else:
            taken.append(f"{size_px} px: {encoder.projection.embedding_dim}")
    return ", ".join(taken)


def image_rows(rows: Sequence[ImageRow]) -> Iterator[list[str]]:
    """Cells of the image table, one row after the other."""
    for row in rows:
        with tempfile.TemporaryDirectory() as directory:
            text = save_architecture(Path(directory) / "text", "bert")
            if isinstance(row.tested_as, PretrainedConfig):
                hub = Path(directory) / "image"
                row.tested_as.save_pretrained(hub)
                processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
                (hub / "preprocessor_config.json").write_text(json.dumps(processor))
                name, shown, sizes = f"hf:{hub}", f"small {row.tested_as.model_type}", "as its config says"
            else:
                name = row.tested_as or row.name
                shown, sizes = row.tested_as, sizes_of(row.name)
            image = ImageConfig(backbone=name, weights="random", size_px=row.size_px)
            yield [f"`{row.name}`", shown and f"`{shown}`", sizes, try_pair(image, text)]


def text_rows(rows: Sequence[TextRow]) -> Iterator[list[str]]:
    """Cells of the text table, one row after the other."""
    image = ImageConfig(backbone="timm:test_efficientnet", weights="random", size_px=64)
    results: dict[str, str] = {}
    for row in rows:
        if row.family not in results:
            with tempfile.TemporaryDirectory() as directory:
                result = try_pair(image, save_architecture(Path(directory), row.family))
                results[row.family] = result.replace(directory, row.name)
        yield [f"`{row.name}`", f"`{row.family}`", results[row.family].replace(row.name, row.family)]


def table(head: Sequence[str], rows: Iterator[list[str]], show: Callable[[str], None]) -> str:
    """A table in Markdown; each row is shown when it is known."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for cells in rows:
        lines.append(f"| {' | '.join(cells)} |")
        show(lines[-1])
    return "\n".join(lines)


def scan(names: Sequence[str], size_px: int, show: Callable[[str], None]) -> str:
    """Build every name on the meta device, and say how many were refused for which reason."""
    refused: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        try:
            with torch.device("meta"):
                build_image_encoder(ImageConfig(backbone=f"timm:{name}", weights="random", size_px=size_px))
        except UserError as error:
            refused[str(error).partition(": ")[2]].append(name)
            show(str(error))
    num_refused = sum(map(len, refused.values()))
    num_built = len(names) - num_refused
    lines = [
        f"timm {timm.__version__} at {size_px} px: {num_built} of {len(names)} names are built. Refused:\n"
    ]
    lines += [f"- {', '.join(f'`{name}`' for name in each)}: {why}" for why, each in refused.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three rows of each table")
    parser.add_argument("--images", action="store_true", help="the image table only")
    parser.add_argument("--texts", action="store_true", help="the text table only")
    parser.add_argument("--scan", action="store_true", help="build every name of timm instead")
    parser.add_argument("--out", type=Path, help="write the page there; with --scan, append to it")
    arguments = parser.parse_args()
    if arguments.scan:
        section = scan(timm.list_models(), 224, print)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as page_file:
                page_file.write(f"\n## All names of timm\n\n{section}\n")
        return
    page = [INTRODUCTION]
    if not arguments.texts:
        images = [row for row in IMAGES if not arguments.quick or row.name in QUICK_IMAGES]
        head = ("image.backbone", "tested as", "embedding at image.size_px", "result")
        page += ["## Images\n", table(head, image_rows(images), print)]
    if not arguments.images:
        texts = [row for row in TEXTS if not arguments.quick or row.name in QUICK_TEXTS]
        head = ("text.backbone", "tested as a small", "result")
        page += ["\n## Texts\n", table(head, text_rows(texts), print)]
    if arguments.out:
        arguments.out.write_text("\n".join(page) + "\n", "utf-8")


if __name__ == "__main__":
    main()
