"""Releases under continuous load, shown: which version answered when, and whether any call was lost."""
