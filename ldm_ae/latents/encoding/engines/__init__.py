"""Engines, which encode in other processes: one per file."""
