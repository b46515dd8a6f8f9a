"""What a user would pick instead of Triton, serving the same files."""
