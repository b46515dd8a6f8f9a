"""Changes the version that a running server serves: load, check, switch, roll back, compare."""
