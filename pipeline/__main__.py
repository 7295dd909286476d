"""`python -m pipeline`, the same as `in9`."""

from pipeline.commands.cli import run_process

run_process()
