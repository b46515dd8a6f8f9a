"""The command `diptych`, a module for each group of commands."""
