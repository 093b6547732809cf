"""Autoencoders that wrap autoencoders."""
