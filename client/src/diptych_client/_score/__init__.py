"""Whole tables through the classifier, in constant memory, going on where a killed job stopped."""

from __future__ import annotations

from diptych_client._score._job import Summary, score_table

__all__ = ["Summary", "score_table"]
