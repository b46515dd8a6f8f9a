"""Pairs that were trained together, from the hub's files to the answers of a real tritonserver."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diptych.config.loader import load_config
from diptych.evaluation.predict import predict
from diptych.export.export import export
from diptych.export.precision import Runtime
from diptych.runs.run import load_run
from diptych.train.train import train
from diptych_client import Client
from diptych_serving.server import Server, ServerConfig
from tests.helpers.catalogues import make_catalogue
from tests.helpers.small_pairs import SIZE_PX, save_pair

REQUESTS = [("1001.png", ""), ("1002.png", "A leaf, and a tree"), (None, "ice"), (None, "snow " * 90)]


@pytest.mark.parametrize("runtime", ["torchscript", "openvino"])
@pytest.mark.parametrize(("family", "max_tokens"), [("clip", 77), ("siglip", 64)])
def test_a_pair_answers_on_a_server_as_it_was_trained(
    family: str, max_tokens: int, runtime: Runtime, tmp_path: Path
) -> None:
    """Texts of one token to more than it has positions: mask and pooling are in the graph."""
    if runtime == "openvino":
        pytest.importorskip("openvino")
    make_catalogue(tmp_path / "train", 24)
    table = make_catalogue(tmp_path / "val", 24, first_seed=1000)
    pair = save_pair(tmp_path / "pair", family)
    (tmp_path / "pair.toml").write_text(
        f"""
        [data]
        train_csv = {json.dumps(str(tmp_path / "train/items.csv"))}
        val_csv = {json.dumps(str(table))}
        [pair]
        backbone = {json.dumps(str(pair))}
        [image]
        size_px = {SIZE_PX}
        [text]
        max_tokens = {max_tokens}
        [train]
        epochs = 2
        freeze_backbones = true
        num_workers = 0
        """
    )
    train(load_config(tmp_path / "pair.toml"), tmp_path / "run")
    shutil.rmtree(pair)  # neither the run nor the repository needs it
    run = load_run(tmp_path / "run")
    _, gated = export(run, tmp_path / "repository", runtime=runtime)
    assert gated.runtime == runtime, gated.precision.note
    with (
        Server(tmp_path / "repository", ServerConfig.on_free_ports()) as server,
        Client(server.grpc_url, timeout_s=30) as client,
    ):
        server.wait_until_ready()
        for picture, text in REQUESTS:
            image = table.parent / picture if picture else None
            expected = predict(run, image.read_bytes() if image else b"", text)
            assert client.classify(image, text).probabilities == pytest.approx(expected, abs=1e-5)
