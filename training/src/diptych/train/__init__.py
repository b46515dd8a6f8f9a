"""Fits a model: the loop, its steps, its processes."""
