"""Flags of jobs on Dataflow."""

from __future__ import annotations

import argparse

from pipeline.command_line.flag_types import add_switch, count, group_of


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
    group.add_argument(
        "--inference_ram", metavar="SIZE", help="memory of the workers that run models"
    )
    add_switch(group, "--no_wait", "submit the job and leave it to Dataflow")
    # What holds anyway; for scripts that say it.
    group.add_argument(
        "--wait", dest="no_wait", action="store_false", default=False, help=argparse.SUPPRESS
    )
