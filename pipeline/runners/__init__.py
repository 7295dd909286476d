"""Runners: checks of Beam's options, and ways to run a graph here, on a job server or Dataflow."""
