"""A fake server on real sockets of the loopback interface. Nothing here needs torch or Triton."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_triton import FakeTriton


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    with FakeTriton().running() as fake:
        yield fake
