"""Flags of datasets: what they are made of, and how they are read, exported and imported."""

from __future__ import annotations

import argparse

from pipeline.command_line.flag_types import add_overwrite, add_switch, group_of, names

# The same names and defaults as pipeline.dataset.config, which is not imported here: it needs
# OpenCV, and --help should not.

_OVERWRITE = ("config", "input", "rebuild", "shards")


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    """Which finished dataset a command works on."""
    parser.add_argument("--dataset", metavar="DIR", help="finished dataset folder (required)")


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Where images come from, and where the dataset goes."""
    group = parser.add_argument_group("input and output")
    _add_output(group)
    group.add_argument("--input", metavar="DIR", help="images, or a manifest (default: the sample)")
    group.add_argument("--annotations", metavar="DIR", help="boxes (default: beside the images)")
    group = group_of(parser, "Sources")
    group.add_argument(
        "--masks", metavar="DIR", help="PNGs, or a COCO .json file, for --segmenter masks"
    )
    group.add_argument(
        "--taxonomy",
        metavar="FILE|WNIDS",
        help="superclass of each class, or WordNet roots (ImageNet-9)",
    )
    group.add_argument("--exclude", metavar="FILE", help="list of images to leave out")
    group.add_argument("--include", metavar="FILE", help="list of images to keep, no others")


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    """What the dataset is made with."""
    group = parser.add_argument_group("dataset")
    add = group.add_argument
    _add_splits(group, "build")
    add(
        "--selection",
        choices=("in9", "in9l"),
        default="in9",
        metavar="in9|in9l",
        help="images with boxes, or all of them, original only (in9)",
    )
    add(
        "--variants",
        type=names,
        default=("all",),
        metavar="A,B",
        help="versions to make (all); docs/variants.md",
    )
    _add_files(group)
    add("--image_size", type=int, default=224, metavar="PX", help="side of the crop (224)")
    add("--resize", type=int, default=256, metavar="PX", help="shorter side before it (256)")
    add(
        "--interpolation",
        choices=("nearest", "bilinear", "bicubic", "lanczos"),
        default="nearest",
        metavar="NAME",
        help="nearest, bilinear, bicubic, lanczos (nearest)",
    )
    add(
        "--encoding",
        choices=("jpg", "png"),
        default="jpg",
        metavar="jpg|png",
        help="of the pictures (jpg)",
    )
    add("--jpeg_quality", type=int, default=95, metavar="Q", help="1 to 100 (95)")
    add(
        "--segmenter",
        default="grabcut",
        metavar="NAME",
        help="grabcut, cv2, box, masks, python:... (grabcut); docs/segmenters.md",
    )
    add("--grabcut_seed", type=int, default=0, metavar="N", help="seeds it for every image (0)")
    add("--seed", type=int, default=0, metavar="N", help="of pairing and selection (0)")
    add("--per_class", default="all", metavar="all|min|N", help="balance of the classes (all)")
    add(
        "--mixed_rand",
        choices=("any", "other"),
        default="any",
        metavar="any|other",
        help="classes that mixed_rand draws from (any)",
    )
    add_switch(group, "--own_background", "an image may get its own background")
    add(
        "--replicates",
        type=int,
        default=1,
        metavar="K",
        help="draws of backgrounds that mixed versions are composed with (1)",
    )
    add("--limit", type=int, default=None, metavar="N", help="only N images a class, by hash")
    add(
        "--layers",
        choices=("keep", "drop"),
        default="keep",
        metavar="keep|drop",
        help="keep layers for the next run (keep)",
    )
    add_switch(group, "--dry_run", "only say what would be done: hours, bytes")


def add_publish_flags(parser: argparse.ArgumentParser) -> None:
    """Where a copy of what came out goes."""
    group = group_of(parser, "Schedule")
    group.add_argument(
        "--publish", metavar="DIR", help="copy dataset and results there, as a new version (none)"
    )
    group.add_argument("--keep", type=int, metavar="N", help="older versions that stay there (all)")


def add_overwrite_flag(parser: argparse.ArgumentParser) -> None:
    """What the dataset may be made otherwise for."""
    add_overwrite(group_of(parser, "dataset"), *_OVERWRITE)


def add_run_overwrite_flag(parser: argparse.ArgumentParser) -> None:
    """The same of the main job, which evaluates as well."""
    add_overwrite(group_of(parser, "dataset"), *_OVERWRITE, "weights")


def add_own_data_flags(parser: argparse.ArgumentParser) -> None:
    """What is different for data that is not ImageNet."""
    group = group_of(parser, "Own data")
    add = group.add_argument
    add(
        "--objects",
        choices=("one", "largest", "union", "each"),
        default="one",
        metavar="one|largest|union|each",
        help="one: an image with several boxes is rejected; largest: the box with the largest "
        "area inside the image; union: the box around all of them; each: every box is an image of "
        "its own (one)",
    )
    add(
        "--max_box",
        type=float,
        default=0.9,
        metavar="X",
        help="largest share of the crop that the box may cover (0.9)",
    )
    add(
        "--min_visible",
        type=float,
        default=0.5,
        metavar="X",
        help="smallest share of the box that the crop must keep (0.5)",
    )
    add(
        "--min_foreground",
        type=float,
        default=0.1,
        metavar="X",
        help="smallest share of the box that the mask must fill (0.1)",
    )
    add(
        "--crop",
        choices=("center", "pad"),
        default="center",
        metavar="center|pad",
        help="center: the shorter side becomes --resize, and the middle --image_size is kept; pad: "
        "the longer side becomes --image_size, and what is missing is black (center)",
    )
    add("--backgrounds", metavar="DIR", help="pictures of scenes for mixed_external")


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Where an export goes."""
    parser.add_argument("--to", metavar="DIR", help="folder of the export (required)")
    parser.add_argument("--split", default="val", metavar="NAME", help="split to export (val)")


def add_import_flags(parser: argparse.ArgumentParser) -> None:
    """What is imported, and how it is stored."""
    parser.add_argument(
        "--from",
        dest="source",
        metavar="DIR|TAR",
        help="folder, .tar or .tar.gz in the released layout (required)",
    )
    _add_output(parser)
    _add_splits(parser, "import")
    _add_files(parser)


def _add_output(group: argparse._ActionsContainer) -> None:
    group.add_argument("--output", metavar="DIR", help="dataset folder (required)")


def _add_splits(group: argparse._ActionsContainer, verb: str) -> None:
    group.add_argument(
        "--split", type=names, default=("val",), metavar="A,B", help=f"splits to {verb} (val)"
    )


def _add_files(group: argparse._ActionsContainer) -> None:
    """What files the pictures are stored in."""
    group.add_argument(
        "--formats",
        type=names,
        default=("parquet", "webdataset"),
        metavar="A,B",
        help="parquet,webdataset",
    )
    group.add_argument(
        "--images_per_shard", type=int, default=1024, metavar="N", help="about (1024)"
    )
