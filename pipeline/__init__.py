"""The ImageNet-9 job: sources, graph, sinks, evaluation, report and command line."""
