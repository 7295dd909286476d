"""Evaluate: runs models on a dataset, stores their predictions, and computes statistics from
them."""
