"""The tiny model. These tests load torch and start no server."""

from tests.helpers.tiny_model import exported_repository, tiny_config, tiny_run

__all__ = ["exported_repository", "tiny_config", "tiny_run"]
