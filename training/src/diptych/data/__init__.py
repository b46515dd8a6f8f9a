"""Reads tables of items, and prepares the openclipart data."""
