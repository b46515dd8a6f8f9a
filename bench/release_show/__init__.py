"""Draws releases under load: which version answered when, and whether any call was lost."""
