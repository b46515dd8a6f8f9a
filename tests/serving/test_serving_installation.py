"""Which tritonserver is used, and which backends it gets."""

import shutil
import sys
import sysconfig

import pytest

from diptych_serving.errors import UserError
from diptych_serving.server import leftovers
from diptych_serving.server.installation import ENVIRONMENT_VARIABLE, STUB, find_installation
from diptych_serving.server.libpython import find_libpython
from diptych_serving.server.workspace import Workspace
from tests.helpers.python_stubs import needs_python_stubs

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def container(tmp_path):
    """The wheel's files in the places where NVIDIA's container has them, without a LibTorch backend."""
    wheel = find_installation()
    root = tmp_path / "opt/tritonserver"
    shutil.copytree(wheel.backends, root / "backends", ignore=shutil.ignore_patterns("pytorch"))
    shutil.copy2(wheel.stub, root / "backends/python")
    (root / "bin").mkdir()
    shutil.copy2(wheel.binary, root / "bin")
    return root


@pytest.fixture
def make_workspace(tmp_path):
    prefix = leftovers.new_prefix()
    (tmp_path / "a repository").mkdir()
    yield lambda installation: Workspace(prefix, installation, tmp_path / "a repository")
    leftovers.sweep(prefix)


@needs_python_stubs
def test_the_wheel_gets_the_stub_of_the_running_python_and_our_pytorch_backend(make_workspace):
    workspace = make_workspace(find_installation())
    assert f"libpython{PYTHON}.so".encode() in (workspace.backends / "python" / STUB).read_bytes()
    assert (workspace.backends / "pytorch/model.py").is_file()


def test_a_native_pytorch_backend_goes_before_ours(container, make_workspace):
    native = container / "backends/pytorch/libtriton_pytorch.so"
    native.parent.mkdir()
    native.touch()
    workspace = make_workspace(find_installation(container / "bin/tritonserver"))
    assert (workspace.backends / "pytorch").samefile(native.parent)


def test_a_container_without_a_native_pytorch_backend_gets_ours(container, make_workspace):
    workspace = make_workspace(find_installation(container / "bin/tritonserver"))
    assert (workspace.backends / "pytorch/model.py").is_file()


def test_a_path_that_tritons_shell_would_split_is_given_another_name(make_workspace, tmp_path):
    workspace = make_workspace(find_installation())
    assert " " not in str(workspace.repository)
    assert workspace.repository.samefile(tmp_path / "a repository")


def test_the_environment_variable_names_a_tritonserver(container, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(container / "bin/tritonserver"))
    assert find_installation().binary == container / "bin/tritonserver"


def test_a_given_path_that_is_no_tritonserver_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--tritonserver: .*/nowhere is not an executable tritonserver"):
        find_installation(tmp_path / "nowhere")


def test_a_tritonserver_without_the_python_backend_is_refused(container):
    shutil.rmtree(container / "backends/python")
    with pytest.raises(UserError, match="has no Python backend, which the preprocessor needs"):
        find_installation(container / "bin/tritonserver")


def test_without_any_tritonserver_the_message_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"no tritonserver found.*pip install 'diptych\[embedded\]'"):
        find_installation()


def test_libpython_is_the_one_of_the_running_interpreter():
    assert find_libpython().name == f"libpython{PYTHON}.so.1.0"
    assert find_libpython().is_file()


def test_a_downloaded_libpython_is_kept_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    kept = tmp_path / f"libpython/libpython{PYTHON}.so.1.0"
    kept.parent.mkdir()
    kept.touch()
    # A Python without a library of its own, as Debian's.
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)
    assert find_libpython() == kept
