"""Dataflow: submitting the graph as a job there, and what such a job needs to know of itself."""
