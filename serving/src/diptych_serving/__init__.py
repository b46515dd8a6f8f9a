"""Serves an exported Diptych repository with NVIDIA Triton, releases its versions and tunes its settings."""

__version__ = "0.1.0"
