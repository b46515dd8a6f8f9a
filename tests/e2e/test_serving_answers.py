"""The real tritonserver over a tiny repository: what it answers, over gRPC and over HTTP."""

import concurrent.futures
import http.client
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from torch import Tensor, nn
from tritonclient.utils import InferenceServerException

from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.probe import grpc_responds
from tests.helpers.python_stubs import needs_python_stubs
from tests.helpers.tiny_repository import LABELS, build_tiny_repository, script_to

# A model of nobody's ensemble, in the shapes that ours do not have: inputs by position, two outputs.
SUM_AND_DIFFERENCE = """
backend: "pytorch"
max_batch_size: 8
input [
  { name: "B__1" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "A__0" data_type: TYPE_FP32 dims: [ -1 ] }
]
output [
  { name: "sum" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "difference" data_type: TYPE_%s dims: [ -1 ] }
]
instance_group [ { count: 1 } ]
dynamic_batching { }
"""


class SumAndDifference(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + b, a - b


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # The space in the path is one that Triton's own shell command would break at.
    repository = build_tiny_repository(tmp_path_factory.mktemp("a b") / "model_repository")
    for name, difference in (("sum_and_difference", "FP32"), ("wrong_type", "INT64")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(SUM_AND_DIFFERENCE % difference)
        script_to(repository / name / "1/model.pt", SumAndDifference())
    with Server(repository, ServerConfig.on_free_ports()) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        yield client


def jpeg(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 20), colour).save(file, "JPEG")
    return file.getvalue()


def inputs_of(**columns: list[bytes] | np.ndarray) -> list[triton.InferInput]:
    inputs = []
    for name, rows in columns.items():
        array = rows if isinstance(rows, np.ndarray) else np.array(rows, np.object_).reshape(-1, 1)
        tensor = triton.InferInput(name, array.shape, "FP32" if array.dtype == np.float32 else "BYTES")
        inputs.append(tensor.set_data_from_numpy(array))
    return inputs


def classify(client: triton.InferenceServerClient, image: bytes, text: bytes) -> np.ndarray:
    result = client.infer("classifier", inputs_of(image=[image], text=[text]), client_timeout=30)
    return result.as_numpy("probabilities")[0]


def test_grpc_answers_with_probabilities_that_sum_to_one(client):
    probabilities = classify(client, jpeg("red"), b"a red cat")
    assert probabilities.shape == (len(LABELS),)
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)


def test_http_answers_the_same_as_grpc(server, client):
    connection = http.client.HTTPConnection(server.contact, server.ports.http, timeout=30)
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a red cat"]}]
    connection.request("POST", "/v2/models/classifier/infer", json.dumps({"inputs": inputs}))
    answer = json.load(connection.getresponse())
    connection.close()
    over_grpc = classify(client, b"", b"a red cat")
    np.testing.assert_allclose(answer["outputs"][0]["data"], over_grpc, rtol=1e-6)


def test_its_grpc_port_responds_without_a_call(server):
    assert grpc_responds(server.contact, server.ports.grpc, is_secure=False, timeout_s=30)


def test_the_classification_extension_names_the_labels(client):
    output = triton.InferRequestedOutput("probabilities", class_count=len(LABELS))
    result = client.infer("classifier", inputs_of(text=[b"hammer"]), outputs=[output])
    labels = [entry.decode().split(":")[2] for entry in result.as_numpy("probabilities")[0]]
    assert sorted(labels) == sorted(LABELS)


def test_a_bad_row_among_several_is_named_by_its_number(client):
    with pytest.raises(InferenceServerException, match="preprocess: row 2 of 3: image and text: found both"):
        client.infer("classifier", inputs_of(image=[b"", b"", b""], text=[b"cat", b"", b"cake"]))


def test_the_pytorch_backend_maps_inputs_by_position_and_outputs_in_order(server, client):
    client.load_model("sum_and_difference", headers=server.admin_key.grpc_headers)
    a, b = np.array([[1, 2], [3, 4]], np.float32), np.array([[10, 20], [30, 40]], np.float32)
    result = client.infer("sum_and_difference", inputs_of(A__0=a, B__1=b))
    np.testing.assert_array_equal(result.as_numpy("sum"), a + b)
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)


def test_requests_of_different_shapes_are_all_answered(server, client):
    client.load_model("sum_and_difference", headers=server.admin_key.grpc_headers)

    def ask(width: int) -> np.ndarray:
        ones = np.ones((1, width), np.float32)
        return client.infer("sum_and_difference", inputs_of(A__0=ones, B__1=ones)).as_numpy("sum")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for width, answer in zip(range(1, 33), pool.map(ask, range(1, 33)), strict=True):
            np.testing.assert_array_equal(answer, np.full((1, width), 2, np.float32))


@needs_python_stubs
def test_an_internal_error_shows_no_traceback_and_no_path_to_strangers(server, client):
    client.load_model("wrong_type", headers=server.admin_key.grpc_headers)
    ones = np.ones((1, 2), np.float32)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("wrong_type", inputs_of(A__0=ones, B__1=ones))
    assert caught.value.message() == "wrong_type: an internal error; the server's log has it"
    assert caught.value.status() == "StatusCode.INTERNAL"


def test_the_server_listens_on_this_machine_only(server):
    tables = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    sockets = [line.split()[1:4] for line in tables.splitlines()]
    listening = {int(local[-4:], 16): local[:-5] for local, _, state in sockets if state == "0A"}
    for port in (server.ports.http, server.ports.grpc, server.ports.metrics):
        assert listening[port].endswith("0100007F")  # 127.0.0.1, as the kernel writes it


def test_the_metrics_hold_latency_quantiles(server):
    connection = http.client.HTTPConnection(server.contact, server.ports.metrics, timeout=30)
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    connection.close()
    assert 'nv_inference_request_summary_us{model="classifier"' in metrics
