"""Duplicates, near duplicates and overlap with other data: found, reported, and left out of the training data."""
