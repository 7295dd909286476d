"""Generate: the stages that make a dataset.

list -> examine -> segment -> plan -> compose -> commit (`pipeline.generate.graph`).
"""
