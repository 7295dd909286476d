"""Evaluate: runs models on a dataset, stores predictions, and computes statistics from them."""
