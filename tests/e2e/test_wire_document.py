"""Every example of docs/wire.md, run as it stands against a real server, and what the page says of errors."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from diptych_serving.server import Server

DOCUMENT = Path(__file__).parents[2] / "docs/wire.md"
BLOCK = re.compile(r"^```(sh|js)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [(language, code) for language, code in BLOCK.findall(DOCUMENT.read_text("utf-8"))]
LABELS = {"cold", "green", "warm"}
TIMEOUT_S = 60


@pytest.fixture
def place(server: Server, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A directory with the page's image, and the environment that its first block sets."""
    Image.new("RGB", (64, 48), (220, 60, 30)).save(tmp_path / "photo.jpg")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DIPTYCH_HTTP": server.http_url,
        "DIPTYCH_GRPC": server.grpc_url.removeprefix("grpc://"),
    }
    return tmp_path, environment


def example(word: str) -> tuple[str, str]:
    (found,) = (one for one in EXAMPLES if word in one[1])
    return found


def run(word: str, place: tuple[Path, dict[str, str]]) -> str:
    """What the only example that holds the word prints."""
    directory, environment = place
    language, code = example(word)
    if language == "js":
        (directory / "classify.mjs").write_text(code)
        command = ["node", "classify.mjs"]
    else:
        command = ["bash", "-eu", "-c", code]
    options = {"cwd": directory, "env": environment, "timeout": TIMEOUT_S}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def labels_of(found: list[str]) -> set[str]:
    return {one.split(":")[2] for one in found}


def test_every_example_is_run_by_a_test():
    words = {"ls photo.jpg", "order-17", "request.bin", "writeUInt32LE", "FileDescriptorSet"}
    words |= {"grpcurl -", "body=", "python - photo.jpg", "perf_analyzer -m"}
    assert len(EXAMPLES) == len(words)
    assert {example(word) for word in words} == set(EXAMPLES)


def test_the_server_is_ready(place):
    assert run("ls photo.jpg", place) == "photo.jpg\n"


def test_curl_sends_text_as_json(place):
    answer = json.loads(run("order-17", place))
    assert answer["id"] == "order-17"
    assert labels_of(answer["outputs"][0]["data"]) == LABELS


def test_json_alone_passes_with_its_length_too(place):
    outputs = {output["name"]: output["data"] for output in json.loads(run("body=", place))["outputs"]}
    assert sum(outputs["probabilities"]) == pytest.approx(1)
    assert re.fullmatch("[0-9a-f]{16}", outputs["labels_sha256"][0])


def test_curl_and_node_send_the_same_image_and_get_the_same_answer(place):
    of_curl = json.loads(run("request.bin", place))["outputs"][0]["data"]
    of_node = run("writeUInt32LE", place).splitlines()
    assert labels_of(of_curl) == LABELS
    assert of_node == of_curl


def test_grpcurl_sends_the_same_image(place, server):
    """The real grpcurl where there is one. Its JSON goes through protobuf's own reader in any case."""
    directory, environment = place
    of_curl = json.loads(run("request.bin", place))["outputs"][0]["data"]
    run("FileDescriptorSet", place)
    _, code = example("grpcurl -")
    message = subprocess.run(
        ["bash", "-eu", "-c", "cat <<JSON" + code.partition("<<JSON")[2]],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    request = json_format.Parse(message, service_pb2.ModelInferRequest())
    with grpc.insecure_channel(environment["DIPTYCH_GRPC"]) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=TIMEOUT_S)
    answers = [answer.raw_output_contents[0]]
    if shutil.which("grpcurl"):
        said = json.loads(run("grpcurl -", place))
        answers.append(base64.b64decode(said["raw_output_contents"][0]))
    for raw in answers:
        assert elements(raw) == of_curl


def test_perf_analyzer_sends_the_same_image(place, server):
    """Its JSON is replayed as it would send it. The real perf_analyzer runs where there is one."""
    directory, environment = place
    of_curl = json.loads(run("request.bin", place))["outputs"][0]["data"]
    run("python - photo.jpg", place)
    (item,) = json.loads((directory / "perf_analyzer.json").read_text())["data"]
    request = service_pb2.ModelInferRequest(model_name="classifier")
    for name, tensor in item.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[1, *tensor["shape"]])
        request.raw_input_contents.append(base64.b64decode(tensor["b64"]))
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
    with grpc.insecure_channel(environment["DIPTYCH_GRPC"]) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=TIMEOUT_S)
    assert elements(answer.raw_output_contents[0]) == of_curl
    if shutil.which("perf_analyzer"):
        assert "throughput" in run("perf_analyzer -m", place)


def elements(raw: bytes) -> list[str]:
    found = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return found


def ask(server: Server, method: str, body: object, **headers: str) -> tuple[int, dict[str, str], str]:
    return send(server, method, json.dumps(body).encode(), **headers)


def send(server: Server, method: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(server.http_contact, server.ports.http, timeout=TIMEOUT_S)
    try:
        connection.request(method, "/v2/models/classifier/infer", body, headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


def item(image: str, text: str, **parameters: int) -> dict[str, object]:
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [value]}
        for name, value in (("image", image), ("text", text))
    ]
    return {"inputs": inputs, "parameters": parameters}


def test_a_wait_that_is_too_long_is_refused(server):
    status, _, body = ask(server, "POST", item("", "a red shoe", timeout=1))
    assert status == 503
    assert "timeout expired" in json.loads(body)["error"]


def test_a_browser_may_not_call_from_another_origin(server):
    preflight = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert ask(server, "OPTIONS", {}, **preflight)[0] == 405
    status, headers, _ = ask(server, "POST", item("", "a red shoe"), Origin="https://shop.example")
    assert status == 200
    assert not any(name.lower().startswith("access-control") for name in headers)


def test_without_the_header_that_says_where_the_bytes_begin_the_request_is_wrong(place, server):
    run("request.bin", place)
    status, _, body = send(server, "POST", (place[0] / "request.bin").read_bytes())
    assert status == 500
    assert "failed to parse the request JSON buffer" in json.loads(body)["error"]


def test_base64_in_json_is_refused_as_base64(place, server):
    image = base64.b64encode((place[0] / "photo.jpg").read_bytes()).decode()
    status, _, body = ask(server, "POST", item(image, "a red shoe"))
    assert status == 400
    assert f"image: found {len(image):,} bytes of base64 text of a JPEG file" in json.loads(body)["error"]
