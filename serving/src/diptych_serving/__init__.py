"""Serves an exported Diptych repository with NVIDIA Triton, releases its versions and tunes its settings."""
