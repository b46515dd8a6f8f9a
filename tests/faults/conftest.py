"""The tiny model behind a real tritonserver."""

from tests.helpers.tiny_model import exported_repository, tiny_config, tiny_run
from tests.helpers.tiny_server import items, releases, server

__all__ = ["exported_repository", "items", "releases", "server", "tiny_config", "tiny_run"]
