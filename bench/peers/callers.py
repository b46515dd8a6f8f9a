"""Callers of each peer: standard library only, one persistent connection for each thread."""

from __future__ import annotations

import base64
import http.client
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from urllib.parse import urlsplit

from diptych_serving.traffic import TIMEOUT_S, Item, Send

Encode = Callable[[bytes, str], tuple[bytes, str]]


def litserve_caller(url: str) -> AbstractContextManager[Send[Item]]:
    """JSON with the image in base64."""
    return _poster(url, _as_json)


def fastapi_caller(url: str) -> AbstractContextManager[Send[Item]]:
    """A form with a file."""
    return _poster(url, _as_form)


@contextmanager
def _poster(url: str, encode: Encode) -> Iterator[Send[Item]]:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)) as connection:

        def post(item: Item) -> None:
            body, content_type = encode(*item)
            connection.request("POST", "/predict", body, {"Content-Type": content_type})
            response = connection.getresponse()
            data = response.read()
            if response.status != http.client.OK:
                raise OSError(f"HTTP {response.status}: {data[:200]!r}")

        yield post


def _as_json(image: bytes, text: str) -> tuple[bytes, str]:
    body = {"image": base64.b64encode(image).decode("ascii"), "text": text}
    return json.dumps(body).encode(), "application/json"


def _as_form(image: bytes, text: str) -> tuple[bytes, str]:
    boundary = uuid.uuid4().hex
    field = f'--{boundary}\r\nContent-Disposition: form-data; name="text"\r\n\r\n{text}\r\n'.encode()
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'.encode()
    file = head + image + b"\r\n" if image else b""
    body = field + file + f"--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"
