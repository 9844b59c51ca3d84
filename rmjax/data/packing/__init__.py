"""Packing trees into rows, the batch plan, and the data loader of training and validation."""
