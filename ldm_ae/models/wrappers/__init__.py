"""Autoencoders around autoencoders."""
