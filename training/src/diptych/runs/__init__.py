"""A trained model on disk: its directory, what it depends on, its checkpoints."""
