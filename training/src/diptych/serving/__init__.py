"""Runs a real tritonserver over a deployable repository: NVIDIA's container's or the one from PyPI."""

from diptych.serving.foreground import serve
from diptych.serving.server import Server

__all__ = ["Server", "serve"]
