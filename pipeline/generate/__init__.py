"""Generate: the stages that make a dataset.

list -> segment -> plan -> compose -> commit (`pipeline.generate.graph`).
"""
