"""Alternatives to Triton that serve the same files."""
