"""Flags of training: of one network, and of the train x test matrix."""

from __future__ import annotations

import argparse

from pipeline.command_line.flag_types import add_switch, count, names
from pipeline.command_line.model_flags import add_leakage_flags


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """What is trained on what, and how."""
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--variant", default="original", metavar="NAME", help="version to train on (original)")
    add(
        "--arch",
        default="resnet50",
        metavar="NAME",
        help="architecture of timm, see: in9 models list (resnet50)",
    )
    add_switch(group, "--pretrained", "begin with its weights for ImageNet")
    add_switch(
        group, "--probe", "fit its last layer alone, on frozen weights for ImageNet: minutes"
    )
    _add_learning_flags(group)
    add("--weight_decay", type=float, default=1e-4, metavar="X", help="of SGD (1e-4)")
    add("--seed", type=int, default=0, metavar="N", help="decides everything on a CPU (0)")
    group = parser.add_argument_group("images")
    add = group.add_argument
    add("--train_split", metavar="NAME", help="to train on (train)")
    add("--eval_split", metavar="NAME", help="to validate on (val, if there is one)")
    add(
        "--holdout",
        type=float,
        default=0.0,
        metavar="X",
        help="leave this share of the split out and validate on it (none)",
    )
    group = parser.add_argument_group("job")
    add = group.add_argument
    add("--output", metavar="DIR", help="folder of the training (DATASET/models/NAME)")
    _add_machine_flags(group, "fp32, tf32, bf16, fp16 (on a GPU bf16, or fp16; on a CPU fp32)")
    add_switch(group, "--overwrite", "begin anew, whatever training the folder holds")


def add_matrix_flags(parser: argparse.ArgumentParser) -> None:
    """Which variants meet which, and what is trained."""
    group = parser.add_argument_group("matrix")
    add = group.add_argument
    add("--in9l", metavar="DIR", help="dataset of IN-9L, as a row and a column (none)")
    add("--variants", type=names, metavar="A,B", help="to train on and to test on (all pictures)")
    add_switch(group, "--probe", "fit the last layer of frozen networks alone: minutes on a CPU")
    add(
        "--arch",
        type=names,
        metavar="A,B",
        help="networks of timm (resnet50; with --probe efficientnet_lite0)",
    )
    add("--train_split", metavar="NAME", help="to train on (train)")
    add("--eval_split", metavar="NAME", help="to test on (val)")
    add_leakage_flags(parser, "matrix", "divide one split: this share of it is tested on (none)")
    group = parser.add_argument_group("training")
    add_switch(group, "--pretrained", "begin with weights for ImageNet; a probe always does")
    _add_learning_flags(group)
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of training (0)")
    add_switch(group, "--overwrite", "train anew where a training with other flags is in the way")
    _add_machine_flags(parser.add_argument_group("job"), "of training (on a CPU fp32)")


def _add_learning_flags(group: argparse._ArgumentGroup) -> None:
    """What a network begins with and how it learns."""
    add = group.add_argument
    add("--weights", metavar="DIR", help="take these weights from here; see: in9 models fetch")
    add("--epochs", type=count, default=200, metavar="N", help="passes over the images (200)")
    add("--batch_size", type=count, default=256, metavar="N", help="in training (256)")
    add("--lr", type=float, default=0.1, metavar="X", help="rate, / 10 after each quarter (0.1)")


def _add_machine_flags(group: argparse._ArgumentGroup, precision: str) -> None:
    """What a training runs on; `precision` says which there are."""
    add = group.add_argument
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        metavar="auto|cpu|cuda",
        help="where it runs; cuda fails if there is no GPU (auto)",
    )
    add(
        "--precision",
        choices=("auto", "fp32", "tf32", "bf16", "fp16"),
        default="auto",
        metavar="NAME",
        help=precision,
    )
    add("--workers", type=int, metavar="N", help="processes that load pictures (by the cores)")
