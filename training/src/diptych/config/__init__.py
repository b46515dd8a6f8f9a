"""What a config file may say, and how it is read."""
