"""Conversion of a store into other trainers' files and back."""
