"""Runners: where a graph runs, by the options of Beam; on Dataflow, what such a job must know."""
