"""Generate: the stages that make a dataset.

List -> Segment -> Plan -> Compose -> Commit (`pipeline.generate.graph`).
"""
