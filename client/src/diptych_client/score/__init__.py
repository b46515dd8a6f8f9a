"""Whole tables through the classifier, in constant memory, going on where a killed job stopped."""

from diptych_client.score.job import Summary, score_table

__all__ = ["Summary", "score_table"]
