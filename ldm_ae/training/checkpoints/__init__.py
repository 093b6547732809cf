"""Checkpoints: their state, their files, when they are written."""
