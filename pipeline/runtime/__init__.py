"""The machine and the run: cores, memory, locks, counters, progress, logs, custom functions."""
