"""Who encodes beside one process: one engine a file."""
