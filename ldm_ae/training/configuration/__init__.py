"""The configuration of a run: its keys, files, short names, help and errors."""
