"""The report of an evaluation: pages, images and lines for a terminal."""
