"""Analyses beyond accuracy on the variants: attack, saliency, accuracy on ImageNet, matrix."""
