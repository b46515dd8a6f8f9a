"""CLIP, SigLIP and their kin: what transformers' own processor and model give, from configs to answers."""

from __future__ import annotations

import io
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.image_processing_backends import PilBackend
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from diptych.config.loader import Config, load_config
from diptych.models.backbones import build_classifier
from diptych.models.classifier import Classifier
from diptych.train.train import build_preprocessor
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Fit, PreprocessingSpec, Preprocessor
from tests.helpers.small_pairs import SIZE_PX, chinese_tokenizer, save_pair

FAMILIES = ("clip", "metaclip_2", "siglip", "chinese_clip")
TEXTS = ["A photo of a Lamp", "ice", "a leaf, and 红色的风筝", "summer " * 100]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pair(tmp_path_factory.mktemp(request.param), request.param)


def config_of(pair: Path, tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "pair.toml"
    path.write_text(
        f"""
        [data]
        train_csv = "train.csv"
        val_csv = "val.csv"
        [pair]
        backbone = {json.dumps(str(pair))}
        [image]
        size_px = {SIZE_PX}
        """
    )
    return load_config(path, overrides)


def build(config: Config) -> tuple[Classifier, Preprocessor]:
    torch.manual_seed(0)
    return build_classifier(config.image, config.text, config.fusion, 3).eval(), build_preprocessor(config)


def photo(width: int, height: int) -> Image.Image:
    """Noise over a gradient: both edges and areas."""
    noise = np.random.default_rng(0).integers(0, 128, (height, width, 3))
    return Image.fromarray((noise + np.linspace(0, 127, width)[:, None]).astype(np.uint8))


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "tolerance"),
    [(100, 75, 0), (33, 127, 0), (127, 96, 0), (20, 30, 0), (600, 450, 12), (450, 1001, 12)],
)
def test_pixels_are_those_of_the_pairs_own_processor(
    pair: Path, tmp_path: Path, width: int, height: int, tolerance: int
) -> None:
    """To the bit below four times the size. Beyond that, whole factors are averaged first: it is faster."""
    _, preprocessor = build(config_of(pair, tmp_path))
    image = photo(width, height)
    theirs = AutoImageProcessor.from_pretrained(pair, backend="pil")
    expected = theirs(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
    found = preprocessor.pixels(as_png(image))
    assert found is not None
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= tolerance


@pytest.mark.parametrize(
    ("fit", "theirs"),
    [
        ("crop", CLIPImageProcessorPil()),
        ("crop", ChineseCLIPImageProcessorPil()),
        ("stretch", SiglipImageProcessorPil()),
    ],
)
def test_photos_have_the_same_pixels_to_the_bit(fit: Fit, theirs: PilBackend) -> None:
    spec = PreprocessingSpec(image_size_px=224, max_tokens=8, image_fit=fit)
    preprocessor = Preprocessor(spec, chinese_tokenizer().backend_tokenizer.to_str())
    for path in files("sklearn.datasets.images").iterdir():
        if path.name.endswith(".jpg"):  # 640 x 427
            expected = theirs(Image.open(path), do_rescale=False, do_normalize=False)["pixel_values"][0]
            assert np.array_equal(preprocessor.pixels(path.read_bytes()), expected)


@torch.inference_mode()
def test_embeddings_are_those_of_the_pairs_own_model(pair: Path, tmp_path: Path) -> None:
    """Cosines of 0.99999; images whose pixels are the same to the bit, texts of 1 to 77 tokens."""
    model, preprocessor = build(config_of(pair, tmp_path, "text.max_tokens=64"))
    theirs, tokenizer = AutoModel.from_pretrained(pair).eval(), AutoTokenizer.from_pretrained(pair)
    images = [photo(100, 75), photo(40, 90)]
    pixels = AutoImageProcessor.from_pretrained(pair, backend="pil")(images, return_tensors="pt")
    found = model.image_encoder.embed(
        torch.stack([torch.from_numpy(preprocessor.pixels(as_png(image))) for image in images])
    )
    expected = theirs.get_image_features(**pixels).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    padding = "max_length" if "siglip" in str(pair) else True
    tokens = tokenizer(TEXTS, padding=padding, truncation=True, max_length=64, return_tensors="pt")
    if "siglip" in str(pair):  # its own processor passes no mask
        tokens = {"input_ids": tokens["input_ids"]}
    found = model.text_encoder.embed(*(torch.from_numpy(array) for array in preprocessor.tokens(TEXTS)))
    expected = theirs.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"size": {"shortest_edge": 40}},
            r"resizes to \{'shortest_edge': 40\} and crops to .*one size",
        ),
        ({"resample": 1}, "resample 1, .*Accepted: 2 or 3"),
        ({"do_normalize": False}, "do_normalize False"),
        (None, "preprocessor_config.json is missing"),
    ],
)
def test_a_rule_for_images_that_is_not_ours_is_refused(
    changes: dict[str, object] | None, message: str, tmp_path: Path
) -> None:
    path = save_pair(tmp_path / "pair", "clip") / "preprocessor_config.json"
    if changes is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        config_of(path.parent, tmp_path)


def test_a_config_that_cannot_be_a_pair_says_why(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image\.size_px is 64, and .* takes 32\. Set it to 32"):
        config_of(pair, tmp_path, "image.size_px=64")
    with pytest.raises(UserError, match=r"text.backbone is 'bert', and \[pair\] names both encoders"):
        config_of(pair, tmp_path, "text.backbone=bert")
    with pytest.raises(UserError, match=r"max_tokens is 200, and .* positions"):
        build(config_of(pair, tmp_path, "text.max_tokens=200"))
    assert config_of(pair, tmp_path, "image.fit=pad").spec.image_fit == "pad"
