"""Files that are written atomically and read without unpickling."""
