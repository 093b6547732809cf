"""Conversion of a store to other trainers' files and back."""
