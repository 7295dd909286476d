"""Differences between two states of a dataset, and their causes.

states of two versions -> images, accuracies, causes -> text
"""
