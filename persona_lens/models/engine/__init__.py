"""Sampling, scoring and reading a model, row by row, in full batches."""
