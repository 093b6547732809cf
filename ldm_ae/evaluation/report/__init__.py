"""The report of an evaluation: pages, pictures and lines for a terminal."""
