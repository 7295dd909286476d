"""The ImageNet-9 job: sources, graph, sinks, evaluation, report and command line."""

__version__ = "0.1.0"
