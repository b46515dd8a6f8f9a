"""Nothing is loaded that no manifest lists, nor what its signer did not sign."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from diptych_serving.errors import UserError
from diptych_serving.release.activation import activate
from diptych_serving.repository.signing import load_private_key, load_public_key, sign_manifest
from diptych_serving.repository.verification import verify_loaded, verify_version
from diptych_serving.server import ServerConfig, Supervision, serve
from tests.helpers.certificates import write_key_pair
from tests.helpers.repository_files import lay_out_repository, write_manifest

MANIFEST = "classifier/1/manifest.json"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ours.key and ours.pub, another's, and a pair of another kind."""
    directory = tmp_path_factory.mktemp("keys")
    for name, key in (
        ("ours", Ed25519PrivateKey.generate()),
        ("another", Ed25519PrivateKey.generate()),
        ("elliptic", ec.generate_private_key(ec.SECP256R1())),
    ):
        write_key_pair(directory / name, key)
    return directory


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    repository = lay_out_repository(tmp_path_factory.mktemp("signed") / "model_repository")
    sign_manifest(repository / MANIFEST, load_private_key(keys / "ours.key"))
    return repository


@pytest.fixture
def repository(signed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(signed, tmp_path / "model_repository")


def refused(repository: Path, message: str, public_key: Path | None = None) -> None:
    """By the server before it starts, by a release before it asks anything, and each with this message."""
    with pytest.raises(UserError, match=message):
        serve(repository, ServerConfig.on_free_ports(), Supervision(public_key=public_key))
    with pytest.raises(UserError, match=message):
        activate(repository, 1, public_key=public_key)


def test_what_was_exported_and_signed_passes(repository: Path, keys: Path) -> None:
    verify_loaded(repository)
    assert verify_version(repository, 1, keys / "ours.pub")["version"] == 1


@pytest.mark.parametrize(
    "name", ["fusion_head/1/model.pt", "preprocess/1/model.py", "preprocess/1/image_files.py"]
)
def test_a_changed_file_is_refused(repository: Path, name: str) -> None:
    with (repository / name).open("ab") as file:
        file.write(b"\n")
    refused(repository, rf"{name}: its SHA-256 is not the one in the manifest of version 1")


@pytest.mark.parametrize("name", ["image_encoder/1/other.pt", "preprocess/1/numpy.py", "tally/1/x/y.so"])
def test_a_file_that_is_not_in_the_manifest_is_refused(repository: Path, name: str) -> None:
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).touch()
    refused(repository, rf"{name}: is not in the manifest of version 1.* may be code")


def test_bytecode_which_python_would_run_in_place_of_the_source_is_removed(repository: Path) -> None:
    planted = repository / "preprocess/1/__pycache__/preprocessing.cpython-311.pyc"
    planted.parent.mkdir()
    planted.write_bytes(b"anything")
    verify_loaded(repository)
    assert not planted.exists()


def test_a_changed_manifest_is_refused_where_a_signature_is_required(repository: Path, keys: Path) -> None:
    with (repository / "fusion_head/1/model.pt").open("ab") as file:
        file.write(b"\n")
    write_manifest(repository)  # by somebody who knows what checksums are, and has no key
    tree = json.loads((repository / MANIFEST).read_text())
    del tree["sha256"]["classifier/1/manifest.json.sig"]
    (repository / MANIFEST).write_text(json.dumps(tree))
    verify_loaded(repository)
    refused(repository, "is not the signature of that manifest by the key in .*ours.pub", keys / "ours.pub")


def test_another_signer_is_refused(repository: Path, keys: Path) -> None:
    sign_manifest(repository / MANIFEST, load_private_key(keys / "another.key"))
    verify_version(repository, 1, keys / "another.pub")
    refused(repository, "is not the signature of that manifest by the key in .*ours.pub", keys / "ours.pub")


@pytest.mark.parametrize("signature", [b"", b"not base64 at all!", b"c2hvcnQ=\n"])
def test_a_damaged_signature_is_refused(repository: Path, keys: Path, signature: bytes) -> None:
    (repository / f"{MANIFEST}.sig").write_bytes(signature)
    refused(repository, "is not the signature of that manifest", keys / "ours.pub")


def test_an_unsigned_manifest_is_refused_where_a_signature_is_required(repository: Path, keys: Path) -> None:
    (repository / f"{MANIFEST}.sig").unlink()
    verify_loaded(repository)
    refused(repository, "manifest.json: is not signed, and --require-signature", keys / "ours.pub")


def test_keys_of_another_kind_are_refused_with_the_way_to_make_one(keys: Path, tmp_path: Path) -> None:
    for path in (keys / "ours.pub", keys / "elliptic.key"):
        with pytest.raises(UserError, match=r"expected an Ed25519 private key.*openssl genpkey"):
            load_private_key(path)
    for path in (keys / "ours.key", keys / "elliptic.pub"):
        with pytest.raises(UserError, match=r"expected an Ed25519 public key.*openssl pkey"):
            load_public_key(path)
    with pytest.raises(UserError, match=r"--sign .*missing.key: No such file"):
        load_private_key(tmp_path / "missing.key")
