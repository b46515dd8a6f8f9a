"""Labels by their names alone: a pair compares items with what the labels are called; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.config.loader import Config
from diptych.data.catalogue import labels_of, read_split
from diptych.data.embedding_cache import embed_items_once
from diptych.evaluation.evaluate import summarize_conditions
from diptych.evaluation.predict import CONDITIONS, Answers
from diptych.models.backbones import build_classifier
from diptych.models.classifier import Classifier, Embeddings
from diptych.train.train import build_preprocessor
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Preprocessor

ZERO_SHOT = "zero-shot, label names"
SCALE = 100.0  # what CLIP learned as the inverse of its temperature, and was capped at


def score_label_names(config: Config) -> dict[str, dict[str, Any]]:
    """Metrics of the test items, or of the validation items where there are none, by condition.

    raises  UserError for a config without [pair]
    """
    if config.pair is None:
        raise UserError("zeroshot: only a pair relates images to words. Name one as pair.backbone")
    data, preprocessor = config.data, build_preprocessor(config)
    labels = data.labels or labels_of(
        read_split(data.train_csv, data, labels=None, preprocessor=preprocessor)
    )
    table = data.test_csv or data.val_csv
    items = read_split(table, data, labels=labels, preprocessor=preprocessor)
    model = build_classifier(config.image, config.text, config.fusion, len(labels))
    embeddings = embed_items_once(
        model, items, preprocessor, title="items", num_workers=config.train.num_workers
    )
    names = embed_label_names(model, preprocessor, labels, config.pair.prompts)
    truth = np.array([labels.index(item.category) for item in items])
    return summarize_conditions(answer_by_names(embeddings, names), truth)


@torch.inference_mode()
def embed_label_names(
    model: Classifier, preprocessor: Preprocessor, labels: Sequence[str], prompts: Sequence[str]
) -> Tensor:
    """(C, D) float32 of length 1: the mean of each label's prompts. `{}` in a prompt is the label's name."""
    texts = [prompt.replace("{}", label) for label in labels for prompt in prompts]
    tokens = (torch.from_numpy(array) for array in preprocessor.tokens(texts))
    embeddings = F.normalize(model.eval().text_encoder.embed(*tokens), dim=1)
    return F.normalize(embeddings.reshape(len(labels), len(prompts), -1).mean(1), dim=1)


def answer_by_names(embeddings: Embeddings, names: Tensor) -> dict[str, Answers]:
    """Answers with both modalities and with each alone. An item with both is the mean of its two vectors.

    names  (C, D) float32, each of length 1
    """
    answers = {}
    for condition, (image, text) in CONDITIONS.items():
        shown = embeddings.keep(image=image, text=text)
        vectors = F.normalize(shown.image, dim=1) * shown.image_present[:, None]
        vectors = vectors + F.normalize(shown.text, dim=1) * shown.text_present[:, None]
        counted = (shown.image_present | shown.text_present).numpy()
        if counted.any():
            similarities = F.normalize(vectors, dim=1) @ names.T
            answers[condition] = Answers((SCALE * similarities).softmax(1).numpy(), counted)
    return answers
