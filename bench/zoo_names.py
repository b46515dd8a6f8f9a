"""The 30 most used image and the 30 most used text backbones, each with a small model of the same class."""

from __future__ import annotations

from typing import NamedTuple

from transformers import (
    BeitConfig,
    ConvNextConfig,
    Dinov2Config,
    PretrainedConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}

_SWIN = SwinConfig(embed_dim=12, depths=[1, 1], num_heads=[1, 2])


class ImageRow(NamedTuple):
    """name       as a config file says it
    tested_as  the model that is trained and exported; '' for itself. Of an 'hf:' name, its class's config
    size_px    of the pictures that it is trained with
    """

    name: str
    tested_as: str | PretrainedConfig = ""
    size_px: int = 64


class TextRow(NamedTuple):
    """name    of the hub
    family  its model type in transformers, of which a small random model is tested
    """

    name: str
    family: str


IMAGES = [
    ImageRow("timm:resnet18"),
    ImageRow("timm:resnet50"),
    ImageRow("timm:resnext50_32x4d"),
    ImageRow("timm:densenet121"),
    ImageRow("timm:vgg16", "timm:vgg11"),
    ImageRow("timm:mobilenetv2_100", "timm:mobilenetv2_050"),
    ImageRow("timm:mobilenetv3_large_100", "timm:mobilenetv3_small_050"),
    ImageRow("timm:mobilenetv4_conv_medium", "timm:mobilenetv4_conv_small_035"),
    ImageRow("timm:efficientnet_b0"),
    ImageRow("timm:tf_efficientnetv2_s", "timm:tf_efficientnetv2_b0"),
    ImageRow("timm:convnext_tiny", "timm:convnext_atto"),
    ImageRow("timm:convnextv2_tiny", "timm:convnextv2_atto"),
    ImageRow("timm:regnety_032", "timm:regnety_002"),
    ImageRow("timm:ghostnet_100", "timm:ghostnet_050"),
    ImageRow("timm:repvgg_a2", "timm:repvgg_a0"),
    ImageRow("timm:fastvit_t8"),
    ImageRow("timm:mobilevit_s", "timm:mobilevit_xxs"),
    ImageRow("timm:vit_base_patch16_224", "timm:vit_tiny_patch16_224"),
    ImageRow("timm:vit_base_patch16_384", "timm:vit_tiny_patch16_384"),
    ImageRow("timm:vit_small_patch14_dinov2", size_px=56),
    ImageRow("timm:vit_small_patch16_dinov3"),
    ImageRow("timm:deit3_small_patch16_224"),
    ImageRow("timm:eva02_base_patch14_448", "timm:eva02_tiny_patch14_336", size_px=56),
    ImageRow("timm:swin_tiny_patch4_window7_224"),
    ImageRow("timm:swinv2_tiny_window8_256"),
    ImageRow("timm:maxvit_tiny_tf_224", "timm:maxvit_rmlp_pico_rw_256"),
    ImageRow("torchvision:resnet50", "torchvision:resnet18"),
    ImageRow("torchvision:inception_v3", size_px=96),
    ImageRow("torchvision:efficientnet_b0"),
    ImageRow("hf:google/vit-base-patch16-224", ViTConfig(**_SMALL)),
    ImageRow("hf:facebook/dinov2-base", Dinov2Config(**_SMALL, image_size=518, patch_size=14), size_px=56),
    ImageRow("hf:microsoft/resnet-50", ResNetConfig(embedding_size=8, **_STAGES)),
    ImageRow(
        "hf:microsoft/swin-tiny-patch4-window7-224", SwinConfig(embed_dim=12, depths=[1, 1], num_heads=[1, 2])
    ),
    ImageRow("hf:microsoft/beit-base-patch16-224", BeitConfig(**_SMALL)),
    ImageRow("hf:facebook/convnext-tiny-224", ConvNextConfig(**_STAGES)),
]

TEXTS = [
    TextRow("google-bert/bert-base-uncased", "bert"),
    TextRow("google-bert/bert-base-multilingual-cased", "bert"),
    TextRow("google-bert/bert-base-chinese", "bert"),
    TextRow("distilbert/distilbert-base-uncased", "distilbert"),
    TextRow("FacebookAI/roberta-base", "roberta"),
    TextRow("FacebookAI/xlm-roberta-base", "xlm-roberta"),
    TextRow("almanach/camembert-base", "camembert"),
    TextRow("albert/albert-base-v2", "albert"),
    TextRow("google/electra-base-discriminator", "electra"),
    TextRow("microsoft/deberta-v3-base", "deberta-v2"),
    TextRow("microsoft/mpnet-base", "mpnet"),
    TextRow("sentence-transformers/all-MiniLM-L6-v2", "bert"),
    TextRow("sentence-transformers/all-mpnet-base-v2", "mpnet"),
    TextRow("sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", "bert"),
    TextRow("BAAI/bge-base-en-v1.5", "bert"),
    TextRow("BAAI/bge-m3", "xlm-roberta"),
    TextRow("intfloat/e5-base-v2", "bert"),
    TextRow("intfloat/multilingual-e5-base", "xlm-roberta"),
    TextRow("thenlper/gte-base", "bert"),
    TextRow("mixedbread-ai/mxbai-embed-large-v1", "bert"),
    TextRow("Snowflake/snowflake-arctic-embed-m", "bert"),
    TextRow("answerdotai/ModernBERT-base", "modernbert"),
    TextRow("google/embeddinggemma-300m", "gemma3_text"),
    TextRow("Qwen/Qwen3-Embedding-0.6B", "qwen3"),
    TextRow("intfloat/e5-mistral-7b-instruct", "mistral"),
    TextRow("nomic-ai/nomic-embed-text-v1.5", "nomic_bert"),
    TextRow("Alibaba-NLP/gte-base-en-v1.5", "gte"),
    TextRow("jinaai/jina-embeddings-v3", "jina_embeddings_v3"),
    TextRow("openai/clip-vit-base-patch32", "clip"),
    TextRow("google/siglip-base-patch16-224", "siglip"),
    TextRow("google-t5/t5-base", "t5"),
    TextRow("facebook/bart-base", "bart"),
    TextRow("xlnet/xlnet-base-cased", "xlnet"),
    TextRow("YituTech/conv-bert-base", "convbert"),
    TextRow("google/fnet-base", "fnet"),
]
