"""The matrix of the paper: a model for each variant to train on, tested on every variant."""
