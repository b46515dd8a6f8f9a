"""Finds the settings of the server that suit one machine, model and mix of requests."""
