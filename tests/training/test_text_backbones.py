"""Every family of text encoders: the embedding that transformers gives, exported, on any device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer

from diptych.config.sections import FusionConfig, ImageConfig, TextConfig
from diptych.export.devices import require_no_device
from diptych.export.torchscript import to_torchscript
from diptych.files import save_tensors
from diptych.models.classifier import Classifier, Inputs
from diptych.models.fidelity import reference_embeddings, require_fidelity, require_same
from diptych.models.fusion import FusionHead
from diptych.models.image_backbones import build_image_encoder
from diptych.models.text_backbones import build_text_encoder, text_architecture
from diptych.models.text_encoder import PooledBackbone
from diptych.models.text_tokenizers import tokenizer_json
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec, Preprocessor
from tests.helpers.small_pairs import siglip_tokenizer
from tests.helpers.text_families import BERT, FAMILIES, MAX_TOKENS, save_architecture
from tests.helpers.tiny_model import save_tokenizer


def save_model(directory: Path, family: str, **changes: Any) -> TextConfig:
    """The same with random weights."""
    save_architecture(directory, family, **changes)
    AutoModel.from_config(CONFIG_MAPPING[family].from_pretrained(directory)).save_pretrained(directory)
    return TextConfig(backbone=str(directory), max_tokens=MAX_TOKENS)


def tokens(*lengths: int) -> tuple[Tensor, Tensor]:
    """Texts of these lengths with a start and an end, padded to the longest: ids and mask, (P, L) int64."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = (torch.arange(length) * 7 + row) % 90 + 5
        ids[row, 0], ids[row, length - 1] = 2, 3
    return ids, (ids > 0).long()


@torch.no_grad()
def sharpen(backbone: nn.Module) -> None:
    """As weights are drawn, attention is nearly the same everywhere and hides a wrong mask."""
    for weight in backbone.parameters():
        if weight.ndim > 1:
            weight.mul_(4)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Its text encoder is put in by each test."""
    image = build_image_encoder(ImageConfig(backbone="timm:test_efficientnet", weights="random", size_px=32))
    return Classifier(image, nn.Module(), FusionHead(FusionConfig(), 3)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_family_gives_the_embeddings_of_transformers_before_and_after_export(
    family: str, classifier: Classifier, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    encoder = build_text_encoder(save_architecture(tmp_path, family)).eval()
    sharpen(encoder.backbone)
    classifier.text_encoder = encoder
    example = tokens(7, 4)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.ones(2, dtype=torch.bool)
    exported = to_torchscript(classifier, Inputs(*images, *example))["text_encoder"]  # refuses any device
    for lengths in ((7, 4), (3,), (20, 2, 11), (12, 12), (2, 2)):
        batch = tokens(*lengths)
        expected = encoder.projection(reference_embeddings(encoder.backbone, *batch), batch[1].any(1))
        features = torch.zeros(len(lengths), 512)
        require_same(expected, encoder(*batch, features), "eager")
        torch.testing.assert_close(exported(*batch, features), encoder(*batch, features), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("convbert", "'convbert' it gives a padded text another embedding .* difference .*Use another"),
        ("nystromformer", "'nystromformer' it gives a padded text another embedding"),
        ("fnet", "'fnet' it gives a padded text another embedding"),
        ("vit", "'vit' does not take token ids"),
    ],
)
def test_a_family_whose_answer_depends_on_padding_is_refused_when_it_is_built(
    family: str, message: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match=message):
        build_text_encoder(save_architecture(tmp_path, family))


class BothDirections(PooledBackbone):
    """Attends to every real token, whatever the model was trained with."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, None, None, :].bool()
        hidden = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return self.pool(hidden, input_ids, attention_mask)


@pytest.mark.parametrize("family", ["qwen2", "clip", "modernbert", "mistral"])
def test_a_mask_that_is_not_the_models_own_is_found(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = save_architecture(tmp_path, family)
    good = build_text_encoder(config).backbone
    sharpen(good)
    preprocessor = Preprocessor(
        PreprocessingSpec(image_size_px=1, max_tokens=MAX_TOKENS), tokenizer_json(config)
    )
    wrong = BothDirections(good.encoder, good.pooling)
    with pytest.raises(UserError, match=r"'\w+' it gives a padded text another embedding"):
        require_fidelity(wrong, preprocessor, "text.backbone")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.inference_mode()
def test_a_graph_that_names_a_device_is_refused(tmp_path: Path) -> None:
    backbone = build_text_encoder(save_architecture(tmp_path, "qwen3")).backbone.eval()
    graph = torch.jit.freeze(torch.jit.trace(backbone, tokens(7, 4), check_trace=False))
    with pytest.raises(UserError, match=r"text_encoder names a device in .*aten::arange"):
        require_no_device("text_encoder", graph)


@pytest.mark.parametrize(
    ("family", "file", "pooling"),
    [
        ("bert", None, "mean"),
        ("qwen3", None, "last"),
        ("gemma3_text", None, "mean"),
        ("clip", None, "eos"),
        ("chinese_clip", None, "cls"),
        ("siglip", None, "last"),
        ("t5", None, "mean"),
        ("bert", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ("bert", {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32}, "mean"),
        ("qwen3", {"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_pooling_is_that_of_the_models_authors(
    family: str, file: dict[str, Any] | None, pooling: str, tmp_path: Path
) -> None:
    config = save_architecture(tmp_path, family)
    if file is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(file))
    assert build_text_encoder(config).backbone.pooling == pooling


def test_a_run_keeps_the_pooling_that_it_was_trained_with(tmp_path: Path) -> None:
    config = save_architecture(tmp_path / "theirs", "bert")
    (tmp_path / "theirs" / "1_Pooling").mkdir()
    (tmp_path / "theirs" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    text_architecture(build_text_encoder(config)).save_pretrained(tmp_path / "run")
    assert build_text_encoder(config, tmp_path / "run").backbone.pooling == "cls"


def test_a_way_to_pool_that_is_not_here_is_refused(tmp_path: Path) -> None:
    config = save_architecture(tmp_path, "bert")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(UserError, match=r"authors pool by max\. Accepted: text\.pooling = 'mean'"):
        build_text_encoder(config)


@torch.inference_mode()
def test_end_of_text_pooling_takes_the_first_end(tmp_path: Path) -> None:
    backbone = build_text_encoder(save_architecture(tmp_path, "clip")).backbone.eval()
    ids, mask = tokens(6, 4)
    ids[0, 2] = 3
    hidden = torch.arange(12.0).reshape(2, 6, 1)
    assert backbone.pool(hidden, ids, mask).squeeze(1).tolist() == [2.0, 9.0]
    ids[1] = 7  # no end at all: the last real token
    assert backbone.pool(hidden, ids, mask).squeeze(1).tolist() == [2.0, 9.0]


@pytest.mark.parametrize(
    ("family", "positions"), [("bert", 40), ("roberta", 39), ("mpnet", 38), ("clip", 40), ("gpt2", 40)]
)
def test_more_tokens_than_positions_are_refused(family: str, positions: int, tmp_path: Path) -> None:
    save_architecture(tmp_path, family)
    with pytest.raises(UserError, match=rf"is 41, and .* has {positions} positions.*to {positions}"):
        build_text_encoder(TextConfig(backbone=str(tmp_path), weights="random", max_tokens=41))
    build_text_encoder(TextConfig(backbone=str(tmp_path), weights="random", max_tokens=positions))


def test_the_tokenizers_side_of_truncation_is_kept(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, truncation_side="left")
    config = TextConfig(backbone=str(tmp_path), max_tokens=4)
    preprocessor = Preprocessor(PreprocessingSpec(image_size_px=1, max_tokens=4), tokenizer_json(config))
    expected = AutoTokenizer.from_pretrained(tmp_path)("fire sun and a summer", truncation=True, max_length=4)
    assert preprocessor.tokens(["fire sun and a summer"])[0].tolist() == [expected["input_ids"]]


def test_siglips_first_tokenizer_needs_no_sentencepiece(tmp_path: Path) -> None:
    siglip_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "SiglipTokenizer"}))
    config = TextConfig(backbone=str(tmp_path), max_tokens=8)
    preprocessor = Preprocessor(PreprocessingSpec(image_size_px=1, max_tokens=8), tokenizer_json(config))
    ids, _ = preprocessor.tokens([" A Leaf, (and) -- a tree!", "a leaf and a tree"])
    assert ids[0].tolist() == ids[1].tolist()
    assert siglip_tokenizer()("a leaf and a tree")["input_ids"] == ids[0, :6].tolist()


def test_models_saved_in_bf16_are_computed_in_float32(tmp_path: Path) -> None:
    config = save_architecture(tmp_path, "bert", dtype="bfloat16")
    assert {weight.dtype for weight in build_text_encoder(config).parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_shared_tensors_can_be_saved(family: str, tmp_path: Path) -> None:
    model = AutoModel.from_config(CONFIG_MAPPING[family](**FAMILIES[family]))
    save_tensors(model.state_dict(), tmp_path / "whole.safetensors")
    encoder = build_text_encoder(save_model(tmp_path / "saved", family))
    save_tensors(encoder.state_dict(), tmp_path / "encoder.safetensors")


def test_code_of_a_models_authors_is_never_run(tmp_path: Path) -> None:
    config = save_model(tmp_path, "bert")
    (tmp_path / "modeling_new.py").write_text("raise SystemExit('their code ran')")
    path = tmp_path / "config.json"
    auto_map = {"AutoConfig": "modeling_new.NewConfig", "AutoModel": "modeling_new.NewModel"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map, "model_type": "new"}))
    with pytest.raises(UserError, match=r"code \(modeling_new.NewModel\), which is never run.*type 'gte'"):
        build_text_encoder(config)


def test_a_native_class_that_lacks_the_authors_layers_is_refused(tmp_path: Path) -> None:
    config = save_model(tmp_path, "bert")
    model = AutoModel.from_pretrained(tmp_path)
    weights = {name.replace("intermediate", "gated"): tensor for name, tensor in model.state_dict().items()}
    save_tensors(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"4 of its tensors are not in its weights, such as encoder\.layer"):
        build_text_encoder(config)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("model.safetensors", b"<!doctype html><html>", "is an HTML page"),
        ("model.safetensors", b"", "model.safetensors is empty"),
        ("model.safetensors", b"PK\x03\x04", "is a pickle with the ending .safetensors"),
        ("model.safetensors", None, "no weights there. Expected model.safetensors"),
        ("config.json", None, "config.json is missing"),
        ("config.json", b"{", "its weights cannot be had: .*JSON"),
        ("tokenizer.json", None, "'.*': its weights cannot be had|needs a fast tokenizer"),
    ],
)
def test_a_damaged_directory_says_what_is_wrong(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    config = save_model(tmp_path, "bert")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        build_text_encoder(config)


def test_pickled_models_are_not_unpickled(tmp_path: Path) -> None:
    config = save_model(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    torch.save(AutoModel.from_config(CONFIG_MAPPING["bert"](**BERT)), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"text\.backbone '.*': its weights cannot be had"):
        build_text_encoder(config)
