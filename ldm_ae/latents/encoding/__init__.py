"""Encoding of a data set into a store."""
