"""The keys of a config file, and how it is read."""
