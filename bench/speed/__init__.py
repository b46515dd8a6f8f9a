"""How near the server comes to the limit, and what the alternatives reach: `make bench`."""
