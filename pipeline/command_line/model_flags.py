"""Flags of models: which are run, where, and on which images."""

from __future__ import annotations

import argparse

from pipeline.command_line.flag_types import add_overwrite, add_switch, group_of, names, share


def add_models_flag(parser: argparse.ArgumentParser) -> None:
    """Which models to evaluate."""
    group = group_of(parser, "models")
    group.add_argument(
        "--models",
        type=names,
        default=None,
        metavar="A,B",
        help="names, wildcards, @FILE; see: in9 models list (efficientnet_lite0)",
    )
    group.add_argument(
        "--weights", metavar="DIR", help="take weights from here; see: in9 models fetch"
    )


def add_models_command_flags(parser: argparse.ArgumentParser) -> None:
    """What `in9 models` does, and with which models."""
    parser.add_argument("action", choices=("list", "fetch"), metavar="list|fetch", help="which")
    parser.add_argument(
        "pattern", nargs="?", metavar="PATTERN", help="list: names that match, such as 'resnet*'"
    )
    add_models_flag(parser)
    parser.add_argument("--to", metavar="DIR", help="fetch: folder that weights are stored in")


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """How models are evaluated."""
    group = group_of(parser, "models")
    add = group.add_argument
    add(
        "--eval_split",
        default=None,
        metavar="SPLIT",
        help="split to evaluate on (val, or the first)",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        metavar="auto|cpu|cuda",
        help="where models run; cuda fails if there is no GPU (auto)",
    )
    add(
        "--precision",
        choices=("fp32", "tf32", "bf16"),
        default="fp32",
        metavar="NAME",
        help="fp32, tf32, bf16 (fp32)",
    )
    add("--batch_size", type=int, default=None, metavar="N", help="32 on a CPU, 256 on a GPU")
    add(
        "--eval_input",
        choices=("stored", "native"),
        default="stored",
        metavar="NAME",
        help="stored pixels as they are, or native preprocessing (stored)",
    )


def add_overwrite_weights_flag(parser: argparse.ArgumentParser) -> None:
    """Which earlier results do not stand in the way."""
    add_overwrite(group_of(parser, "models"), "weights")


_HELD_OUT = "test on this share of the images alone, left out by training with it"


def add_holdout_flag(
    parser: argparse.ArgumentParser, title: str = "models", text: str = _HELD_OUT
) -> None:
    """Which share of the images is for the test."""
    group = group_of(parser, title)
    group.add_argument("--holdout", type=share, default=0.0, metavar="X", help=text)


def add_leakage_flags(
    parser: argparse.ArgumentParser, title: str = "models", text: str = _HELD_OUT
) -> None:
    """What keeps images that were trained on out of the test."""
    add_holdout_flag(parser, title, text)
    group = group_of(parser, title)
    add_switch(group, "--allow_overlap", "test on images that were trained on, too, and mark it")


def add_run_leakage_flags(parser: argparse.ArgumentParser) -> None:
    """The same of the main job, which few give checkpoints of their own."""
    add_leakage_flags(parser, "Leakage")
