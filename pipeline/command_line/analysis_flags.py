"""Flags of analyses of models, and of the report."""

from __future__ import annotations

import argparse

from pipeline.command_line.flag_types import add_switch, count, grid, group_of, names

_GRID = "all|N|FxB"


def add_attack_flags(parser: argparse.ArgumentParser) -> None:
    """Which foregrounds meet which backgrounds."""
    group = parser.add_argument_group("attack")
    group.add_argument(
        "--grid",
        type=grid,
        default="all",
        metavar=_GRID,
        help="foregrounds and backgrounds, spread evenly over the classes: N x N or F x B (all)",
    )
    add_switch(
        group,
        "--early_stop",
        "leave a foreground when a background has turned it: challenge accuracy alone, sooner",
    )


def add_run_attack_flag(parser: argparse.ArgumentParser) -> None:
    """The attack of the main job."""
    group = group_of(parser, "analyses and report")
    group.add_argument(
        "--attack",
        type=grid,
        default=None,
        metavar=_GRID,
        help="adversarial backgrounds, on a grid of N x N or F x B (none)",
    )


def add_saliency_flags(parser: argparse.ArgumentParser) -> None:
    """What saliency is measured of, and of how many images it is shown."""
    group = parser.add_argument_group("saliency")
    group.add_argument(
        "--maps",
        type=count,
        default=9,
        metavar="N",
        help="share of saliency on the foreground, shown for N images (9)",
    )
    group.add_argument(
        "--variant", default="original", metavar="NAME", help="version of the images (original)"
    )


def add_run_saliency_flag(parser: argparse.ArgumentParser) -> None:
    """The saliency of the main job."""
    group = group_of(parser, "analyses and report")
    group.add_argument(
        "--saliency",
        type=count,
        default=None,
        metavar="N",
        help="share of saliency on the foreground, shown for N images (none)",
    )


def add_imagenet_flag(parser: argparse.ArgumentParser) -> None:
    """Where accuracy on ImageNet is measured."""
    group = group_of(parser, "analyses and report")
    group.add_argument(
        "--imagenet",
        metavar="DIR",
        help="measure top-1 accuracy on DIR/val, for the trend (published figures)",
    )


def add_condition_flags(parser: argparse.ArgumentParser) -> None:
    """Which results fail a job."""
    group = group_of(parser, "analyses and report")
    group.add_argument(
        "--fail_if",
        type=names,
        action="extend",
        metavar="COND",
        help="exit code 3 if a model's whole interval satisfies it: 'bg_gap>0.1'",
    )


def add_report_flag(parser: argparse.ArgumentParser) -> None:
    """What the page shows."""
    group = group_of(parser, "analyses and report")
    group.add_argument(
        "--pictures",
        choices=("sample", "none"),
        default="sample",
        metavar="sample|none",
        help="pictures in report.html; none for sharing it without (sample)",
    )
