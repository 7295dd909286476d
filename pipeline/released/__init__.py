"""The folder layout of the authors' release: exported from a dataset, and imported as one."""
