"""Accuracy on ImageNet itself, which the trend is plotted against."""
