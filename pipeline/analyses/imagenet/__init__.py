"""Accuracy of models on ImageNet itself, which the trend compares with accuracy on the variants."""
