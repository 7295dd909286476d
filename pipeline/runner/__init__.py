"""Running a graph: Beam's options and runners, counters, progress, the log of a job."""
