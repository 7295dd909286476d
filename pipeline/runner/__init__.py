"""Running a graph, or a loop without Beam: options and runners, counters, progress, the log."""
