"""Settings from environment variables, and optional packages.

Secrets come from the environment, because all users of a machine can read the arguments of a command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

from diptych_client._errors import InvalidInput
from diptych_client._tls import Tls

DEFAULT_URL = "grpc://127.0.0.1:8001"


def headers_of(environment: Mapping[str, str]) -> dict[str, str]:
    """DIPTYCH_HEADERS in OpenTelemetry's form: name=value,name=value, percent-encoded where needed.

    Raises InvalidInput, without showing a value that may be a secret.
    """
    headers = {}
    for number, pair in enumerate(filter(None, environment.get("DIPTYCH_HEADERS", "").split(",")), start=1):
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput.refusing(
                "DIPTYCH_HEADERS", f"no '=' in part {number}", "name=value,name=value"
            )
        headers[unquote(name.strip())] = unquote(value.strip())
    return headers


def timeout_of(environment: Mapping[str, str]) -> float | None:
    """DIPTYCH_TIMEOUT_S; None if it is not set. Raises InvalidInput."""
    text = environment.get("DIPTYCH_TIMEOUT_S")
    try:
        return float(text) if text else None
    except ValueError:
        raise InvalidInput.refusing("DIPTYCH_TIMEOUT_S", repr(text), "a number of seconds") from None


def tls_of(environment: Mapping[str, str]) -> Tls | None:
    """DIPTYCH_CA_FILE, DIPTYCH_CERTIFICATE_FILE and DIPTYCH_KEY_FILE; None if none of them is set."""
    files = [environment.get(f"DIPTYCH_{name}_FILE") or None for name in ("CA", "CERTIFICATE", "KEY")]
    return Tls(*files) if any(files) else None


class MissingExtra(ImportError):
    """The packages of an optional feature are not installed. The message says how to install them."""


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Use around imports of the extra `name`. Raises MissingExtra."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed; get it with: pip install 'diptych-client[{name}]'"
        raise MissingExtra(message, name=error.name) from error
