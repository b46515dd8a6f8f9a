"""Which version of a repository serves: staged, proven, switched and taken back on a running server."""
