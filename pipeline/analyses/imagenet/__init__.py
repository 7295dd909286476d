"""Accuracy on ImageNet itself, against which the trend is drawn."""
