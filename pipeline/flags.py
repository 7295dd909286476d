"""Flag definitions of the command line; snake_case, so that they can be template parameters."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from pipeline.errors import UsageError

# The same names and defaults as pipeline.config, which is not imported here: it needs
# OpenCV, and --help should not.


def boolean(text: str) -> bool:
    """Parses `true` or `false`, as templates pass them."""
    lowered = text.lower()
    if lowered not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return lowered == "true"


def names(text: str) -> tuple[str, ...]:
    """Parses a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _switch(group: argparse._ArgumentGroup, flag: str, text: str) -> None:
    group.add_argument(
        flag, nargs="?", const=True, default=False, type=boolean, metavar="true", help=text
    )


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Where images come from, and where the dataset goes."""
    group = parser.add_argument_group("input and output")
    group.add_argument("--output", metavar="DIR", help="dataset folder (required)")
    group.add_argument("--input", metavar="DIR", help="ImageNet folder (default: the sample)")
    group.add_argument("--annotations", metavar="DIR", help="boxes (default: beside the images)")


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    """What the dataset is made with."""
    group = parser.add_argument_group("dataset")
    add = group.add_argument
    add("--split", type=names, default=("val",), metavar="A,B", help="splits to build (val)")
    add("--selection", default="in9", metavar="in9", help="which images (in9)")
    add("--variants", type=names, default=("all",), metavar="A,B", help="versions to make (all)")
    add(
        "--formats",
        type=names,
        default=("parquet", "webdataset"),
        metavar="A,B",
        help="parquet,webdataset",
    )
    add("--images_per_shard", type=int, default=1024, metavar="N", help="about (1024)")
    add("--image_size", type=int, default=224, metavar="PX", help="side of the crop (224)")
    add("--resize", type=int, default=256, metavar="PX", help="shorter side before it (256)")
    add(
        "--interpolation",
        default="nearest",
        metavar="NAME",
        help="nearest, bilinear, bicubic, lanczos (nearest)",
    )
    add("--encoding", default="jpg", metavar="jpg|png", help="of the pictures (jpg)")
    add("--jpeg_quality", type=int, default=95, metavar="Q", help="1 to 100 (95)")
    add("--segmenter", default="grabcut", metavar="NAME", help="grabcut, cv2 (grabcut)")
    add("--grabcut_seed", type=int, default=0, metavar="N", help="seeds it for every image (0)")
    add("--seed", type=int, default=0, metavar="N", help="of pairing and selection (0)")
    add("--per_class", default="all", metavar="all|min|N", help="balance of the classes (all)")
    add(
        "--mixed_rand",
        default="any",
        metavar="any|other",
        help="classes that mixed_rand draws from (any)",
    )
    _switch(group, "--own_background", "an image may get its own background")
    add(
        "--replicates",
        type=int,
        default=1,
        metavar="K",
        help="compose each mixed version with K independent draws of backgrounds (1)",
    )
    add("--limit", type=int, default=None, metavar="N", help="only N images a class, by hash")
    add("--layers", default="keep", metavar="keep|drop", help="keep layers for the next run (keep)")
    _switch(group, "--dry_run", "say what would be done, how long and how large; do nothing")
    _switch(group, "--overwrite", "accept a configuration that differs from the dataset's")
    _switch(group, "--reshard", "choose the numbers of shards anew, without segmenting")


def add_models_flag(parser: argparse.ArgumentParser) -> None:
    """Which models to evaluate."""
    parser.add_argument(
        "--models",
        type=names,
        default=None,
        metavar="A,B",
        help="timm names, ARCH=FILE, efficientnet_lite0 (default)",
    )


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """How models are evaluated."""
    group = parser.add_argument_group("evaluation")
    add = group.add_argument
    add(
        "--eval_split",
        default=None,
        metavar="SPLIT",
        help="split to evaluate on (val, or the first)",
    )
    add("--device", default="auto", metavar="auto|cpu|cuda", help="where models run (auto)")
    add("--precision", default="fp32", metavar="NAME", help="fp32, tf32, bf16 (fp32)")
    add("--batch_size", type=int, default=None, metavar="N", help="32 on a CPU, 256 on a GPU")
    add(
        "--eval_input",
        default="stored",
        metavar="NAME",
        help="stored pixels as they are, or native preprocessing (stored)",
    )
    _switch(group, "--require_gpu", "fail if there is no GPU")
    _switch(group, "--accept_new_weights", "take weights that differ from earlier results'")


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    """Which finished dataset a command works on."""
    parser.add_argument("--dataset", metavar="DIR", help="finished dataset folder (required)")


_RUNNER_NOTE = """
Flags that are not listed go to Apache Beam, such as --runner and --direct_num_workers.
Exit codes: 0 done, 1 the job failed, 2 wrong usage or unreadable input."""

Adder = Callable[[argparse.ArgumentParser], None]

COMMANDS: dict[str, tuple[str, str, tuple[Adder, ...]]] = {
    "run": (
        "make what is missing, evaluate what is missing, write the report",
        "in9 run --output out --input /data/imagenet --models resnet50,efficientnet_lite0",
        (add_input_flags, add_models_flag, add_dataset_flags, add_evaluate_flags),
    ),
    "generate": (
        "make the dataset only",
        "in9 generate --output out --input /data/imagenet --split val,train",
        (add_input_flags, add_dataset_flags),
    ),
    "evaluate": (
        "accuracy of models on every variant, and BG-Gap, with intervals",
        "in9 evaluate --dataset out --models resnet50.a1_in1k,resnet18=trained.pth",
        (add_dataset_argument, add_models_flag, add_evaluate_flags),
    ),
    "report": (
        "write tables and page from what is there",
        "in9 report --dataset out",
        (add_dataset_argument,),
    ),
    "verify": (
        "check a dataset against its manifest; one line a fault, exit code 1",
        "in9 verify --dataset out",
        (add_dataset_argument,),
    ),
}
"""Command to (what it does, an example, its flags)."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="in9",
        description="Does a model look at the object, or at the background? ImageNet-9 from "
        "your own images: generate the variants, evaluate models.",
        epilog="Example: in9 run --output out    (the embedded sample)",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (text, example, adders) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=f"in9 {name}: {text}.",
            epilog=f"Example: {example}\n{_RUNNER_NOTE}",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            prog=f"in9 {name}",
            usage=f"in9 {name} [flags]",
        )
        for add in adders:
            add(command)
    return parser
