"""Saliency: how much of what moves a model's answers lies on the foreground."""
