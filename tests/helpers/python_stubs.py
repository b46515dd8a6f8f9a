"""Marks tests of what only our Python-based `pytorch` backend does: processes to kill, its own messages."""

from __future__ import annotations

import pytest

from diptych_serving.server.installation import ENVIRONMENT_VARIABLE, find_installation

needs_python_stubs = pytest.mark.skipif(
    find_installation().has_native_pytorch,
    reason=f"needs TorchScript models in Python processes; {ENVIRONMENT_VARIABLE} names a native backend",
)
