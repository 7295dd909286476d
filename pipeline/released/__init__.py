"""The released folder layout: written from a dataset, and read as one."""
