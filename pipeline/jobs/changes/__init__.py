"""Differences between two states of a dataset, and their causes.

Data flow: two states -> changes of images, changes of accuracies, their causes -> text
"""
