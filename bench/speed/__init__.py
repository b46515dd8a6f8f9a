"""The server's speed beside the limit and the alternatives: `make bench`."""
