"""Models: resolves and loads the entries of `--models`, with a module for each source."""
