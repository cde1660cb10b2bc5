"""Columns to what a training step takes: numpy arrays, tensors, jagged and padded batches."""
