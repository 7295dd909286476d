"""Figures, drawn by pure functions of what they show: results, or pictures of the dataset."""
