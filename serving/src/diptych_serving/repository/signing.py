"""A manifest's signature (Ed25519): proves who made a version. Needs the library `cryptography`.

Keys are PEM files as OpenSSL makes them:
    openssl genpkey -algorithm ed25519 -out release.key
    openssl pkey -in release.key -pubout -out release.pub
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from diptych_serving.errors import UserError
from diptych_serving.repository.layout import SIGNATURE_FILE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises UserError for anything but an unencrypted Ed25519 key in PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path, "--sign"), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(
            f"--sign {path}: expected an Ed25519 private key in PEM, without a password. "
            "Make one: openssl genpkey -algorithm ed25519 -out release.key"
        )
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Raises UserError for anything but an Ed25519 public key in PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path, "--require-signature"))
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(
            f"--require-signature {path}: expected an Ed25519 public key in PEM. "
            "Take it from the private one: openssl pkey -in release.key -pubout -out release.pub"
        )
    return key


def sign_manifest(manifest: Path, key: Ed25519PrivateKey) -> None:
    """Write the signature of the file's bytes beside it."""
    signature = base64.b64encode(key.sign(manifest.read_bytes())).decode()
    manifest.with_name(SIGNATURE_FILE).write_text(f"{signature}\n", "utf-8")


def require_signature(manifest: Path, content: bytes, public_key: Path) -> None:
    """Check the signature beside a manifest against its content and this key. Raises UserError."""
    from cryptography.exceptions import InvalidSignature

    key, path = load_public_key(public_key), manifest.with_name(SIGNATURE_FILE)
    if not path.is_file():
        raise UserError(
            f"{manifest}: is not signed, and --require-signature needs a signature. Export it with --sign KEY"
        )
    try:
        key.verify(base64.b64decode(path.read_bytes().strip(), validate=True), content)
    except (InvalidSignature, binascii.Error):
        raise UserError(
            f"{path}: is not the signature of that manifest by the key in {public_key}: "
            "the manifest was changed, or somebody else signed it"
        ) from None


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from None
