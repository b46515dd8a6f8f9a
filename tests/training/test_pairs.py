"""CLIP, SigLIP and their kin: what transformers' own processor and model give, from configs to answers."""

from __future__ import annotations

import io
import json
import shutil
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

from diptych.analysis.zeroshot import score_label_names
from diptych.config.loader import Config, load_config
from diptych.evaluation.predict import predict
from diptych.export.export import export
from diptych.models.backbones import build_classifier
from diptych.models.classifier import Classifier
from diptych.runs.run import load_run
from diptych.train.train import build_preprocessor, train
from diptych_client import Client
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Fit, PreprocessingSpec, Preprocessor
from tests.helpers.catalogues import make_catalogue, write_catalogue, write_picture
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
        train_csv = {json.dumps(str(tmp_path / "train" / "items.csv"))}
        val_csv = {json.dumps(str(tmp_path / "val" / "items.csv"))}
        [train]
        epochs = 2
        num_workers = 0
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


def test_siglip_with_its_padding_in_front_is_refused(tmp_path: Path) -> None:
    """Its text tower sees the padding, so on the other side it gives another embedding."""
    pair = save_pair(tmp_path / "pair", "siglip")
    path = pair / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    with pytest.raises(UserError, match="pads on the left, and the model sees the padding"):
        build(config_of(pair, tmp_path))


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("clip", ["train.freeze_backbones=true", "fusion.kind=attention", "text.max_tokens=77"]),
        ("metaclip_2", ["train.freeze_backbones=true"]),
        ("siglip", ["train.freeze_backbones=false", "train.backbone_lr=1e-4"]),
        ("chinese_clip", ["train.freeze_backbones=false", "image.fit=pad"]),
    ],
)
def test_a_pair_is_trained_and_exported_and_answers_as_it_was_trained(
    family: str, overrides: list[str], tmp_path: Path
) -> None:
    make_catalogue(tmp_path / "train", 24)
    table = make_catalogue(tmp_path / "val", 24, first_seed=1000)
    pair = save_pair(tmp_path / "pair", family)
    train(config_of(pair, tmp_path, *overrides), tmp_path / "run")
    shutil.rmtree(pair)  # a run needs nothing of it
    run = load_run(tmp_path / "run")
    export(run, tmp_path / "repository")
    with Client(f"local:{tmp_path / 'repository'}", timeout_s=60) as client:
        for image, text in [("1001.png", ""), ("1002.png", "A leaf, and a tree"), (None, "snow " * 90)]:
            answer = client.classify(table.parent / image if image else None, text)
            data = (table.parent / image).read_bytes() if image else b""
            assert answer.probabilities == pytest.approx(predict(run, data, text), abs=1e-5)


@pytest.mark.parametrize(("name", "fit", "num_tokens"), [("clip", "crop", 77), ("siglip", "stretch", 64)])
def test_shipped_configs_build_their_pair_from_a_local_copy(
    name: str, fit: str, num_tokens: int, tmp_path: Path
) -> None:
    copy = save_pair(tmp_path / "copy", name, size_px=224)
    config = load_config(Path(name), [f"pair.backbone={copy}"])
    model, preprocessor = build(config)
    assert (preprocessor.spec.image_fit, preprocessor.spec.max_tokens) == (fit, num_tokens)
    assert model.image_encoder.backbone.embedding_dim == model.text_encoder.projection.embedding_dim


def test_label_names_are_scored_without_training(tmp_path: Path) -> None:
    """Its texts name their label, and a random pair finds the same words near."""
    pair = save_pair(tmp_path / "pair", "siglip")
    rows = [(f"{seed}.png", f"a {label}", label) for seed, label in enumerate(["ice", "tree", "lamp"] * 4)]
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for picture, _, _ in rows:
            write_picture(tmp_path / split / picture, "warm", 0)
        write_catalogue(tmp_path / split / "items.csv", rows)
    config = config_of(pair, tmp_path, 'pair.prompts=["a {}"]')
    scores = score_label_names(config)
    assert scores["text_only"]["accuracy"] == 1
    assert scores["image_only"]["accuracy"] == pytest.approx(1 / 3)  # all images are one
    assert scores["both"]["num_items"] == 12


def test_zero_shot_without_a_pair_says_what_is_missing(tiny_config: Path) -> None:
    with pytest.raises(UserError, match=r"only a pair .* pair\.backbone"):
        score_label_names(load_config(tiny_config))
