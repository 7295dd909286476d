"""Runners: checks Beam's options and runs a graph here, on a job server, or on Dataflow."""
