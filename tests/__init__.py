"""Tests by what they test; helpers/ is what several of them share."""
