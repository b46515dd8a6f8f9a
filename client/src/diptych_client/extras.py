"""What to say where a part of the client needs packages that a plain install does not bring."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class MissingExtra(ImportError):
    """An optional part was asked for whose packages are not installed. The message says how to get them."""


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Around the imports that the extra `name` brings. Raises MissingExtra."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed; get it with: pip install 'diptych-client[{name}]'"
        raise MissingExtra(message, name=error.name) from error
