"""Offline scoring and evaluation: the reward pipeline, score files, metrics and the report."""
