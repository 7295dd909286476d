"""Saliency: how much of a model's gradient lies on the foreground."""
