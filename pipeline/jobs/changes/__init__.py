"""What is different between two states of a dataset, and why.

states of two versions -> images, accuracies, causes -> text
"""
