"""Chinese words and labels: trained, drawn, exported, and answered by a real tritonserver."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from transformers import BertConfig

from diptych.config.loader import load_config
from diptych.evaluation.evaluate import evaluate
from diptych.evaluation.plots import plot_prediction
from diptych.evaluation.predict import predict
from diptych.export.export import export
from diptych.train.train import train
from diptych_client import Client
from diptych_serving.server import Server, ServerConfig
from tests.helpers.catalogues import write_catalogue, write_picture
from tests.helpers.small_pairs import chinese_tokenizer

LABELS = {"冷": ("cold", "冰雪冬湖"), "绿": ("green", "叶草园树"), "暖": ("warm", "火阳夏灯")}


def make_chinese_catalogue(directory: Path, num_items: int) -> Path:
    """Items of three categories; every fifth lacks its image."""
    directory.mkdir()
    rows = []
    for number in range(num_items):
        label = list(LABELS)[number % 3]
        colour, words = LABELS[label]
        write_picture(directory / f"{number}.png", colour, number)
        text = f"一个{words[number % 4]}和{words[(number + 1) % 4]}的照片 {number}"
        rows.append((f"{number}.png" if number % 5 else "", text, label))
    return write_catalogue(directory / "items.csv", rows)


def test_chinese_words_lead_from_training_to_a_servers_answer(tmp_path: Path) -> None:
    tables = {name: make_chinese_catalogue(tmp_path / name, 48) for name in ("train", "val", "test")}
    tokenizer = chinese_tokenizer()
    tokenizer.save_pretrained(tmp_path / "bert")
    BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    ).save_pretrained(tmp_path / "bert")
    data = "\n".join(f"{name}_csv = {json.dumps(str(table))}" for name, table in tables.items())
    (tmp_path / "chinese.toml").write_text(
        f"""
        [data]
        {data}
        [image]
        backbone = "timm:test_efficientnet"
        weights = "random"
        size_px = 64
        [text]
        backbone = {json.dumps(str(tmp_path / "bert"))}
        weights = "random"
        max_tokens = 24
        [train]
        epochs = 12
        batch_size = 16
        lr = 0.003
        freeze_backbones = true
        num_workers = 0
        """,
        "utf-8",
    )
    run = train(load_config(tmp_path / "chinese.toml"), tmp_path / "run")
    evaluate(run)
    text = "冬天的雪和湖"
    expected = predict(run, b"", text)
    assert next(iter(expected)) == "冷"
    assert all(label in (run.directory / "report.html").read_text("utf-8") for label in LABELS)
    picture = tmp_path / "test" / "1.png"
    plot_prediction(Image.open(picture), text, expected, tmp_path / "prediction.png")

    export(run, tmp_path / "repository")
    with (
        Server(tmp_path / "repository", ServerConfig.on_free_ports()) as server,
        Client(server.grpc_url, timeout_s=30) as client,
    ):
        server.wait_until_ready()
        answer = client.classify(text=text)
    assert answer.label == "冷"
    assert max(abs(answer.probabilities[label] - expected[label]) for label in LABELS) < 1e-5
