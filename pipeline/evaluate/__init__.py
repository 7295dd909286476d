"""Evaluate: the inference stage, which turns a dataset and models into predictions."""
