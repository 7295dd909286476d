"""Flag definitions of the command line; snake_case, so that they can be template parameters."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import NoReturn

from pipeline.errors import UsageError

# The same names and defaults as pipeline.dataset.config, which is not imported here: it needs
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


def _group(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """The group of flags with this title, which several functions may add to."""
    known = (group for group in parser._action_groups if group.title == title)
    return next(known, None) or parser.add_argument_group(title)


def _switch(group: argparse._ArgumentGroup, flag: str, text: str) -> None:
    group.add_argument(
        flag, nargs="?", const=True, default=False, type=boolean, metavar="true", help=text
    )


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Where images come from, and where the dataset goes."""
    group = parser.add_argument_group("input and output")
    group.add_argument("--output", metavar="DIR", help="dataset folder (required)")
    group.add_argument("--input", metavar="DIR", help="images, or a manifest (default: the sample)")
    group.add_argument("--annotations", metavar="DIR", help="boxes (default: beside the images)")
    group = _group(parser, "Sources")
    group.add_argument(
        "--layout",
        default="auto",
        choices=("auto", "folder", "kaggle", "tar", "webdataset", "parquet", "manifest"),
        metavar="NAME",
        help="of the input: folder, kaggle, tar, webdataset, parquet or manifest (found out)",
    )
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
    add("--split", type=names, default=("val",), metavar="A,B", help="splits to build (val)")
    add(
        "--selection",
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
    add(
        "--segmenter",
        default="grabcut",
        metavar="NAME",
        help="grabcut, cv2, box, masks, onnx:FILE (grabcut); docs/segmenters.md",
    )
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
        help="draws of backgrounds that mixed versions are composed with (1)",
    )
    add("--limit", type=int, default=None, metavar="N", help="only N images a class, by hash")
    add("--layers", default="keep", metavar="keep|drop", help="keep layers for the next run (keep)")
    _switch(group, "--dry_run", "only say what would be done: hours, bytes, price (--assume A=X)")
    # Its line is the one above; docs/costs.md lists the names.
    add("--assume", type=names, default=(), help=argparse.SUPPRESS)
    _switch(group, "--overwrite", "accept a configuration that differs from the dataset's")
    group = _group(parser, "Schedule")
    _switch(group, "--reshard", "choose the numbers of shards anew, without segmenting")
    _switch(group, "--versioned", "every change becomes a folder of its own; see latest.json")
    group.add_argument("--keep", type=int, metavar="N", help="older versions that stay (all)")
    _switch(group, "--allow_rebuild", "let changed inputs rebuild over a tenth of the shards")


def add_own_data_flags(parser: argparse.ArgumentParser) -> None:
    """What is different for data that is not ImageNet."""
    group = _group(parser, "Own data")
    add = group.add_argument
    add(
        "--objects",
        default="one",
        metavar="one|largest|union|each",
        help="which of several boxes (one: images with several are rejected)",
    )
    add("--max_box", type=float, default=0.9, metavar="X", help="largest share of the crop")
    add("--min_visible", type=float, default=0.5, metavar="X", help="share of the box in the crop")
    add(
        "--min_foreground",
        type=float,
        default=0.1,
        metavar="X",
        help="smallest share of the box that is foreground",
    )
    add("--crop", default="center", metavar="center|pad", help="what makes pictures square")
    add("--backgrounds", metavar="DIR", help="pictures of scenes for mixed_external")


def add_models_flag(parser: argparse.ArgumentParser) -> None:
    """Which models to evaluate."""
    group = _group(parser, "models")
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
    group = _group(parser, "models")
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


def add_condition_flags(parser: argparse.ArgumentParser) -> None:
    """Which results fail a job."""
    group = _group(parser, "analyses and report")
    group.add_argument(
        "--fail_if",
        type=names,
        action="extend",
        metavar="COND",
        help="exit code 3 if a model's whole interval satisfies it: 'bg_gap>0.1'",
    )


def _grid_side(text: str) -> int | str:
    """Parses `all` or a number of images."""
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected all or a number of images, got {text!r}")
    return text if text == "all" else int(text)


def add_attack_flags(parser: argparse.ArgumentParser) -> None:
    """Which foregrounds meet which backgrounds."""
    group = parser.add_argument_group("attack")
    for side in ("foregrounds", "backgrounds"):
        group.add_argument(
            f"--{side}",
            type=_grid_side,
            default="all",
            metavar="all|N",
            help="how many, spread evenly over the classes (all)",
        )
    _switch(
        group,
        "--early_stop",
        "leave a foreground when a background has turned it: challenge accuracy alone, sooner",
    )
    _switch(group, "--dry_run", "measure two batches of each model and say how long it will take")


def add_run_attack_flag(parser: argparse.ArgumentParser) -> None:
    """The attack of the main job."""
    group = _group(parser, "analyses and report")
    group.add_argument(
        "--attack",
        type=_grid_side,
        default=None,
        metavar="all|N",
        help="adversarial backgrounds, on a grid of N x N (none)",
    )


def add_imagenet_flag(parser: argparse.ArgumentParser) -> None:
    """Where accuracy on ImageNet is measured."""
    group = _group(parser, "analyses and report")
    group.add_argument(
        "--imagenet",
        metavar="DIR",
        help="measure top-1 accuracy on DIR/val, for the trend (published figures)",
    )


def _count(text: str) -> int:
    """Parses a number that is at least 1."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def add_saliency_flags(parser: argparse.ArgumentParser) -> None:
    """What saliency is measured of, and which images it is shown of."""
    group = parser.add_argument_group("saliency")
    shown = group.add_mutually_exclusive_group()
    shown.add_argument("--images", type=names, metavar="KEY,KEY", help="show these images")
    shown.add_argument(
        "--maps",
        type=_count,
        default=9,
        metavar="N",
        help="show N images, spread evenly over the classes (9)",
    )
    group.add_argument(
        "--variant", default="original", metavar="NAME", help="version of the images (original)"
    )
    group.add_argument(
        "--smoothgrad",
        type=_count,
        default=0,
        metavar="N",
        help="average the gradient over N noisy copies, at N times the cost (none)",
    )


def add_run_saliency_flag(parser: argparse.ArgumentParser) -> None:
    """The saliency of the main job."""
    group = _group(parser, "analyses and report")
    group.add_argument(
        "--saliency",
        type=_count,
        default=None,
        metavar="N",
        help="share of saliency on the foreground, shown for N images (none)",
    )


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
    _switch(group, "--pretrained", "begin with its weights for ImageNet")
    _switch(group, "--probe", "fit its last layer alone, on frozen weights for ImageNet: minutes")
    add("--weights", metavar="DIR", help="take these weights from here; see: in9 models fetch")
    add("--epochs", type=_count, default=200, metavar="N", help="passes over the images (200)")
    add("--batch_size", type=_count, default=256, metavar="N", help="of all processes (256)")
    add("--lr", type=float, default=0.1, metavar="X", help="rate, / 10 after each quarter (0.1)")
    add("--momentum", type=float, default=0.9, metavar="X", help="of SGD (0.9)")
    add("--weight_decay", type=float, default=1e-4, metavar="X", help="of SGD (1e-4)")
    add(
        "--color_jitter",
        type=float,
        default=0.1,
        metavar="X",
        help="of brightness, contrast, saturation (0.1)",
    )
    add("--seed", type=int, default=0, metavar="N", help="decides everything on a CPU (0)")
    group = parser.add_argument_group("images")
    add = group.add_argument
    add("--split", default=None, metavar="NAME", help="to train on (train)")
    add("--val_split", default=None, metavar="NAME", help="to validate on (val, if there is one)")
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
    add("--device", default="auto", metavar="auto|cpu|cuda", help="where it runs (auto)")
    add(
        "--precision",
        default="auto",
        metavar="NAME",
        help="fp32, tf32, bf16, fp16 (on a GPU bf16, or fp16; on a CPU fp32)",
    )
    _switch(group, "--require_gpu", "fail if there is no GPU")
    add(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="processes that load pictures (by the cores)",
    )
    add("--threads", type=_count, metavar="N", help="of torch on a CPU (by the cores)")
    add("--stop_after", type=_count, metavar="N", help="leave after epoch N, to go on later")
    _switch(group, "--tensorboard", "write events for TensorBoard, too")
    _switch(group, "--overwrite", "begin anew, whatever training the folder holds")


def add_matrix_flags(parser: argparse.ArgumentParser) -> None:
    """Which variants meet which, and what is trained."""
    group = parser.add_argument_group("matrix")
    add = group.add_argument
    add("--in9l", metavar="DIR", help="dataset of IN-9L, as a row and a column (none)")
    add("--variants", type=names, metavar="A,B", help="to train on and to test on (all pictures)")
    _switch(group, "--probe", "fit the last layer of frozen networks alone: minutes on a CPU")
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
    add = group.add_argument
    _switch(group, "--pretrained", "begin with weights for ImageNet; a probe always does")
    add("--weights", metavar="DIR", help="take these weights from here; see: in9 models fetch")
    add("--epochs", type=_count, default=200, metavar="N", help="passes over the images (200)")
    add("--batch_size", type=_count, default=256, metavar="N", help="in training (256)")
    add("--lr", type=float, default=0.1, metavar="X", help="rate, / 10 after each quarter (0.1)")
    add("--seed", type=int, default=0, metavar="N", help="of training (0)")
    _switch(group, "--overwrite", "train anew where a training with other flags is in the way")
    group = parser.add_argument_group("job")
    add = group.add_argument
    add("--device", default="auto", metavar="auto|cpu|cuda", help="where it runs (auto)")
    add("--precision", default="auto", metavar="NAME", help="of training (on a CPU fp32)")
    _switch(group, "--require_gpu", "fail if there is no GPU")
    add("--workers", type=int, metavar="N", help="processes that load pictures (by the cores)")


_HELD_OUT = "test on this share of the images alone, left out by training with it"


def add_holdout_flag(
    parser: argparse.ArgumentParser, title: str = "models", text: str = _HELD_OUT
) -> None:
    """Which share of the images is for the test."""
    group = _group(parser, title)
    group.add_argument("--holdout", type=_share, default=0.0, metavar="X", help=text)


def add_leakage_flags(
    parser: argparse.ArgumentParser, title: str = "models", text: str = _HELD_OUT
) -> None:
    """What keeps images that were trained on out of the test."""
    add_holdout_flag(parser, title, text)
    group = _group(parser, title)
    _switch(group, "--allow_overlap", "test on images that were trained on, too, and mark it")


def add_run_leakage_flags(parser: argparse.ArgumentParser) -> None:
    """The same of the main job, which few give checkpoints of their own."""
    add_leakage_flags(parser, "Leakage")


def _share(text: str) -> float:
    """Parses a share from 0 to below 1."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to below 1, got {text!r}")
    return share


def add_dataflow_flags(parser: argparse.ArgumentParser) -> None:
    """How a job is run on Dataflow."""
    group = _group(parser, "Dataflow")
    group.add_argument(
        "--gpu",
        metavar="TYPE[:MACHINE]",
        help="GPU of the workers that run models, such as nvidia-l4:g2-standard-8 (none)",
    )
    group.add_argument(
        "--gpus", type=_count, metavar="N", help="groups of shards that meet models at a time (1)"
    )
    group.add_argument(
        "--inference_ram", metavar="SIZE", help="memory of the workers that run models"
    )
    _switch(group, "--no_wait", "submit the job and leave it to Dataflow")
    # What holds anyway; for scripts that say it.
    group.add_argument(
        "--wait", dest="no_wait", action="store_false", default=False, help=argparse.SUPPRESS
    )


def add_report_flag(parser: argparse.ArgumentParser) -> None:
    """What the page shows."""
    group = _group(parser, "analyses and report")
    group.add_argument(
        "--pictures",
        choices=("sample", "none"),
        default="sample",
        metavar="sample|none",
        help="pictures in report.html; none for sharing it without (sample)",
    )


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    """Which finished dataset a command works on."""
    parser.add_argument("--dataset", metavar="DIR", help="finished dataset folder (required)")


_IN_ONE_LINE = {
    "Dataflow": "docs/dataflow.md",
    "Sources": "docs/sources.md",
    "Own data": "docs/own_data.md",
    "Schedule": "docs/schedule.md",
    "Leakage": "docs/training.md",
}
"""Titles of groups of flags that help names in one line, and what says more about them."""


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Where an export goes."""
    parser.add_argument("--to", metavar="DIR", help="folder of the export (required)")
    parser.add_argument("--split", default="val", metavar="NAME", help="split to export (val)")


def add_import_flags(parser: argparse.ArgumentParser) -> None:
    """What is imported, and how it is stored."""
    add = parser.add_argument
    add(
        "--from",
        dest="source",
        metavar="DIR|TAR",
        help="folder, .tar or .tar.gz in the released layout (required)",
    )
    add("--output", metavar="DIR", help="dataset folder (required)")
    add("--split", type=names, default=("val",), metavar="A,B", help="splits to import (val)")
    add(
        "--formats",
        type=names,
        default=("parquet", "webdataset"),
        metavar="A,B",
        help="parquet,webdataset",
    )
    add("--images_per_shard", type=int, default=1024, metavar="N", help="about (1024)")


_RUNNER_NOTE = """
Flags that are not listed go to Apache Beam, such as --runner and --direct_num_workers.
Exit codes: 0 done, 1 the job failed, 2 wrong usage or unreadable input, 3 a --fail_if holds."""

Adder = Callable[[argparse.ArgumentParser], None]

COMMANDS: dict[str, tuple[str, str, tuple[Adder, ...]]] = {
    "run": (
        "make what is missing, evaluate what is missing, write the report",
        "in9 run --output out --input /data/imagenet --models resnet50,efficientnet_lite0",
        (
            *(add_input_flags, add_own_data_flags, add_models_flag, add_dataset_flags),
            *(add_evaluate_flags, add_run_leakage_flags, add_imagenet_flag),
            add_run_attack_flag,
            *(add_run_saliency_flag, add_report_flag, add_condition_flags),
            add_dataflow_flags,
        ),
    ),
    "generate": (
        "make the dataset only",
        "in9 generate --output out --input /data/imagenet --split val,train",
        (
            *(add_input_flags, add_own_data_flags, add_dataset_flags),
            *(add_report_flag, add_dataflow_flags),
        ),
    ),
    "evaluate": (
        "accuracy of models on every variant, and BG-Gap, with intervals",
        "in9 evaluate --dataset out --models resnet50.a1_in1k,resnet18=trained.pth",
        (
            *(add_dataset_argument, add_models_flag, add_evaluate_flags, add_leakage_flags),
            *(add_imagenet_flag, add_report_flag, add_condition_flags),
            add_dataflow_flags,
        ),
    ),
    "attack": (
        "adversarial backgrounds: which foregrounds any background can turn",
        "in9 attack --dataset out --models resnet50 --foregrounds 100 --backgrounds 100",
        (
            *(add_dataset_argument, add_models_flag, add_attack_flags, add_evaluate_flags),
            add_leakage_flags,
            *(add_report_flag, add_dataflow_flags),
        ),
    ),
    "saliency": (
        "how much of what moves a model's answers lies on the foreground; maps",
        "in9 saliency --dataset out --models resnet50,resnet50=mixed_rand.pth --maps 9",
        (
            *(add_dataset_argument, add_models_flag, add_saliency_flags, add_evaluate_flags),
            add_holdout_flag,
            *(add_report_flag, add_dataflow_flags),
        ),
    ),
    "train": (
        "train a network on a variant; goes on where it was stopped",
        "in9 train --dataset out --variant mixed_rand --arch resnet18 --epochs 50",
        (add_dataset_argument, add_train_flags),
    ),
    "matrix": (
        "train on each variant and test on all: the train x test matrix",
        "in9 matrix --dataset out --probe --holdout 0.5",
        (add_dataset_argument, add_matrix_flags, add_report_flag),
    ),
    "models": (
        "list the models that can be loaded, or store their weights in a folder",
        "in9 models fetch --models resnet50,hf:microsoft/resnet-50 --to weights",
        (add_models_command_flags,),
    ),
    "report": (
        "write tables and page from what is there",
        "in9 report --dataset out",
        (add_dataset_argument, add_report_flag),
    ),
    "export": (
        "write a dataset in the released layout: a folder for each class, masks as .npy",
        "in9 export --dataset out --to bg_challenge",
        (add_dataset_argument, add_export_flags),
    ),
    "import": (
        "read data in the released layout as a dataset; finds the true backgrounds",
        "in9 import --from bg_challenge.tar.gz --output released",
        (add_import_flags,),
    ),
    "verify": (
        "check a dataset against its manifest; one line a fault, exit code 1",
        "in9 verify --dataset out",
        (add_dataset_argument,),
    ),
}
"""Command to (what it does, an example, its flags)."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help with a line for nearly every flag."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)
        self._title: str | None = None

    def start_section(self, heading: str | None) -> None:
        self._title = heading
        super().start_section(None if heading in _IN_ONE_LINE else heading)

    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        page = _IN_ONE_LINE.get(self._title or "")
        if page is None:
            super().add_arguments(actions)
            return
        shown = [action for action in actions if action.help != argparse.SUPPRESS]
        names = ", ".join(self._format_action_invocation(action) for action in shown)
        self.add_text(f"{self._title} ({page}): {names}")


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
            formatter_class=_Help,
            prog=f"in9 {name}",
            # The description names the command already.
            usage=argparse.SUPPRESS,
            add_help=False,
        )
        # Works as ever; who reads this knows it.
        command.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        for add in adders:
            add(command)
    return parser
