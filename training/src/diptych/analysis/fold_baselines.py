"""Simple baselines on the same folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from diptych.analysis.doubtful import linear_probe, probe_features
from diptych.analysis.zeroshot import ZERO_SHOT, answer_by_names, embed_label_names
from diptych.config.loader import Config
from diptych.data.embedding_cache import embed_items_once
from diptych.data.folds import Fold, predict_out_of_fold
from diptych.data.items import Item
from diptych.evaluation.predict import CONDITIONS, Answers
from diptych.models.backbones import build_classifier
from diptych.train.train import build_preprocessor

LINEAR_PROBE, TF_IDF = "linear probe", "TF-IDF, logistic regression"


def tf_idf() -> object:
    """Logistic regression on words and word pairs."""
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=500)
    )


def answer_baselines(
    config: Config,
    items: Sequence[Item],
    truth: NDArray[np.int64],
    folds: Sequence[Fold],
    labels: Sequence[str],
) -> dict[str, dict[str, Answers]]:
    """Answers by baseline and condition. The probe on pretrained backbones is one for each condition."""
    torch.manual_seed(config.seed)  # backbones may be random
    num_labels = len(labels)
    model = build_classifier(config.image, config.text, config.fusion, num_labels)
    num_workers = config.train.num_workers
    preprocessor = build_preprocessor(config)
    embeddings = embed_items_once(model, items, preprocessor, title="all items", num_workers=num_workers)
    probes = {}
    for name, (image, text) in CONDITIONS.items():
        shown = embeddings.keep(image=image, text=text)
        counted = (shown.image_present | shown.text_present).numpy()
        if counted.any():
            features = probe_features(shown)
            probes[name] = _answers(linear_probe(), features, counted, truth, folds, num_labels)
    texts, has_text = np.array([item.text for item in items]), embeddings.text_present.numpy()
    baselines = {LINEAR_PROBE: probes}
    if config.pair:
        names = embed_label_names(model, preprocessor, labels, config.pair.prompts)
        baselines[ZERO_SHOT] = answer_by_names(embeddings, names)
    if has_text.any():
        from_texts = _answers(tf_idf(), texts, np.ones(len(items), bool), truth, folds, num_labels)
        baselines[TF_IDF] = {"both": from_texts, "text_only": from_texts._replace(counted=has_text)}
    return baselines


def _answers(
    model: object,
    features: NDArray[np.generic],
    counted: NDArray[np.bool_],
    truth: NDArray[np.int64],
    folds: Sequence[Fold],
    num_labels: int,
) -> Answers:
    probabilities = predict_out_of_fold(model, features, truth, folds, num_labels)
    return Answers(probabilities.astype(np.float32), counted)
