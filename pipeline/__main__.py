"""`python -m pipeline`, the same as `in9`."""

from pipeline.cli import run_process

run_process()
