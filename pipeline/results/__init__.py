"""Results: predictions and what is computed from them, in the folder `results/` of a dataset."""
