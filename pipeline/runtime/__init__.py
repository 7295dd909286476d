"""The machine and the run: cores, memory, counters, progress, the log, functions of the user's."""
