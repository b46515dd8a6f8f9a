"""Trains an image-and-text classifier, exports it to NVIDIA Triton and serves it."""

__version__ = "0.1.0"
