"""How the command line is configured where arguments are not given: secrets have no place among those, which
every user of a machine can list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional
from urllib.parse import unquote

from diptych_client.errors import InvalidInput
from diptych_client.tls import Tls

DEFAULT_URL = "grpc://127.0.0.1:8001"


def headers_of(environment: Mapping[str, str]) -> dict[str, str]:
    """DIPTYCH_HEADERS in OpenTelemetry's form: name=value,name=value, percent-encoded where needed.

    Raises InvalidInput, without repeating what may be a secret.
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


def tls_of(environment: Mapping[str, str]) -> Optional[Tls]:
    """DIPTYCH_CA_FILE, DIPTYCH_CERTIFICATE_FILE and DIPTYCH_KEY_FILE; None where none of them is set."""
    files = [environment.get(f"DIPTYCH_{name}_FILE") or None for name in ("CA", "CERTIFICATE", "KEY")]
    return Tls(*files) if any(files) else None
