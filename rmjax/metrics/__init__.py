"""Metrics of rewards against preferences and labels, shared by training and evaluation."""
