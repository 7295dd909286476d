"""Models: what a `--models` entry means, and how it is loaded. One module for each source."""
