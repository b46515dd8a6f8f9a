"""Runs a real tritonserver over a deployable repository: NVIDIA's container's or the one from PyPI."""

from diptych_serving.server.config import ServerConfig, Supervision
from diptych_serving.server.foreground import serve
from diptych_serving.server.server import Server

__all__ = ["Server", "ServerConfig", "Supervision", "serve"]
