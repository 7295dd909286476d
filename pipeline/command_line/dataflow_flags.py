"""Flags of jobs on Dataflow."""

from __future__ import annotations

import argparse

from pipeline.command_line.flag_types import count, group_of


def add_dataflow_flags(parser: argparse.ArgumentParser) -> None:
    """How a job is run on Dataflow."""
    group = group_of(parser, "Dataflow")
    group.add_argument(
        "--gpu",
        metavar="TYPE[:MACHINE]",
        help="GPU of the workers that run models, such as nvidia-l4:g2-standard-8 (none)",
    )
    group.add_argument(
        "--gpus", type=count, metavar="N", help="groups of shards that meet models at a time (1)"
    )
