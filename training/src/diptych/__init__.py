"""Trains an image-and-text classifier, exports it to NVIDIA Triton and serves it."""
