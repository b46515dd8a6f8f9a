"""Classifies whole tables in constant memory; resumes a killed job."""

from __future__ import annotations

from diptych_client._score._job import Summary, score_table

__all__ = ["Summary", "score_table"]
