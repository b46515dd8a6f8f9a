"""Compares two models on the same items: answers, numbers, page."""
