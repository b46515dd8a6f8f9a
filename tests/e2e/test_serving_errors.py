"""What a user can do wrong with `serve`: one clear message each, before or instead of a running server."""

import shutil
import socket

import pytest

from diptych_serving.errors import UserError
from diptych_serving.server import Server, ServerConfig, serve
from diptych_serving.server.ports import Ports
from diptych_serving.server.triton_log import describe_failure
from tests.helpers.python_stubs import needs_python_stubs
from tests.helpers.repository_files import SOURCE
from tests.helpers.tiny_repository import build_tiny_repository

FREE = ServerConfig.on_free_ports()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return build_tiny_repository(tmp_path_factory.mktemp("errors") / "model_repository")


def test_a_directory_that_is_no_repository_is_sent_to_export(tmp_path):
    with pytest.raises(UserError, match=r"not a model repository, .*config.pbtxt is missing.*diptych export"):
        serve(tmp_path, FREE)


def test_the_source_configs_are_not_served():
    with pytest.raises(UserError, match=r"holds configs but no version of a model.*diptych export"):
        serve(SOURCE, FREE)


def test_a_taken_port_is_named_with_the_process_that_has_it(repository):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--grpc-port {port}: taken by \S+ \(process \d+\)"):
            serve(repository, ServerConfig(ports=Ports(http=0, grpc=port, metrics=0)))


def test_one_port_for_two_purposes_is_refused(repository):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UserError, match=f"--metrics-port {port}: already given to another"):
        serve(repository, ServerConfig(ports=Ports(http=port, grpc=0, metrics=port)))


@needs_python_stubs
def test_models_that_do_not_load_are_named_with_their_cause_alone(repository, tmp_path):
    broken = tmp_path / "model_repository"
    shutil.copytree(repository, broken)
    (broken / "image_encoder/1/model.pt").unlink()
    with pytest.raises(UserError) as caught, Server(broken, FREE) as server:
        server.wait_until_ready()
    assert str(caught.value) == (
        "tritonserver could not start: "
        "model image_encoder, version 1: Internal: FileNotFoundError: 1/model.pt is not there"
    )


def test_a_model_whose_process_cannot_start_is_an_error_and_not_a_wait_for_ever(repository, tmp_path):
    broken = tmp_path / "model_repository"
    shutil.copytree(repository, broken)
    (broken / "preprocess/1/model.py").unlink()
    with (
        pytest.raises(UserError, match=r"could not start a model's process: Python model file not found"),
        Server(broken, FREE) as server,
    ):
        server.wait_until_ready()


def test_the_cause_of_an_unreadable_config_is_the_first_error_and_not_what_follows_from_it():
    log = (
        'E1123 18:18:29.942368 1 server.cc:241] "CudaDriverHelper has not been initialized."\n'
        'E1123 18:18:29.943948 1 model_repository_manager.cc:1460] "Poll failed for model directory '
        "'text_encoder': failed to read text proto from /r/text_encoder/config.pbtxt\"\n"
        "error: creating server: Invalid argument - load failed for model 'classifier': ensemble classifier "
        "contains models that are not available or ambiguous: text_encoder\n"
    )
    assert describe_failure(log) == (
        "Poll failed for model directory 'text_encoder': "
        "failed to read text proto from /r/text_encoder/config.pbtxt"
    )
