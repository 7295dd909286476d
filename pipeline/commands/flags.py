"""The flags of all commands, as the rows of one table: parser, reference and template read it.

The names and defaults of a dataset's are those of pipeline.dataset.config, which is not imported
here: it needs OpenCV, and --help should not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pipeline.commands.flag_types import Words, boolean, count, grid, names, share


class Flag(NamedTuple):
    """A row: what argparse's `add_argument` is given. A name without dashes is an argument."""

    name: str
    metavar: str
    help: str
    default: Any = None
    type: Callable[[str], Any] | None = None
    choices: tuple[str, ...] | None = None
    nargs: str | None = None
    const: object = None
    action: str = "store"

    @property
    def dest(self) -> str:
        """The name of its value among parsed arguments."""
        return self.name.removeprefix("--")

    @property
    def default_text(self) -> str:
        """Its default as one would give it, empty without one."""
        if isinstance(self.default, tuple):
            return ",".join(self.default)
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return "" if self.default is None else str(self.default)

    @property
    def told(self) -> str:
        """Its help, with its default."""
        shows = self.default_text and not isinstance(self.default, bool)
        return f"{self.help} (default: {self.default_text})" if shows else self.help

    @property
    def is_required(self) -> bool:
        """Whether the command does nothing without it."""
        return "(required)" in self.help


class Section(NamedTuple):
    """Flags with the title of their group, empty without one, and the commands that have them.

    Those of one title that a command has follow each other."""

    title: str
    commands: tuple[str, ...]
    flags: tuple[Flag, ...]


def sections_of(command: str) -> Iterator[Section]:
    """The sections of one command, in the order of help."""
    return (section for section in SECTIONS if command in section.commands)


def flags_of(command: str) -> list[Flag]:
    """The flags of one command, in the order of help."""
    return [flag for section in sections_of(command) for flag in section.flags]


def _switch(name: str, text: str) -> Flag:
    """A flag that is true if it is there, or if its value says so."""
    return Flag(name, "true", text, default=False, type=boolean, nargs="?", const=True)


def _choice(name: str, words: tuple[str, ...], text: str, metavar: str = "") -> Flag:
    """A flag that takes one of these words, the first by default."""
    return Flag(name, metavar or "|".join(words), text, words[0], choices=words)


def _overwrite(*known: str) -> Flag:
    """`--overwrite`, whose words each lift the one refusal that names them."""
    text = "accept what a run refuses, by the words that its refusal names"
    return Flag("--overwrite", ",".join(known), text, (), Words(*known), nargs="?", const="")


def _section(title: str, commands: tuple[str, ...], *flags: Flag) -> Section:
    """A section, with its flags one after the other."""
    return Section(title, commands, flags)


_GENERATING = ("run", "generate")
_ANALYSES = ("evaluate", "attack", "saliency")
_TRAINING = ("train", "matrix")
_GRAPHS = (*_GENERATING, *_ANALYSES)

_GRID = "all|N|FxB"
_HELD_OUT = "test on this share of the images alone, left out by training with it"

_OUTPUT = Flag("--output", "DIR", "dataset folder (required)")
_FILES = (
    Flag(
        "--formats", "A,B", "of the pictures: parquet, webdataset", ("parquet", "webdataset"), names
    ),
    Flag("--images_per_shard", "N", "images of an output shard, about", 1024, int),
)
_ALLOW_OVERLAP = _switch("--allow_overlap", "test on images that were trained on, too, and mark it")
_LEARNING = (
    Flag("--weights", "DIR", "folder to take first weights from; see: in9 models fetch"),
    Flag("--epochs", "N", "passes over the images", 200, count),
    Flag("--batch_size", "N", "images in a step of training", 256, count),
    Flag("--lr", "X", "learning rate, a tenth of it after each quarter", 0.1, float),
)
_TRAIN_DEVICE = _choice(
    "--device", ("auto", "cpu", "cuda"), "where it runs; cuda fails if there is no GPU"
)
_TRAIN_PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
_WORKERS = Flag("--workers", "N", "processes that load pictures (default: by the cores)", type=int)

SECTIONS = (
    _section(
        "",
        (*_ANALYSES, *_TRAINING, "report", "export", "verify"),
        Flag("--dataset", "DIR", "finished dataset folder (required)"),
    ),
    _section(
        "",
        ("export",),
        Flag("--to", "DIR", "folder of the export, or with --images a file (required)"),
        Flag("--split", "NAME", "split to export", "val"),
        Flag(
            "--images",
            "A,B",
            "a figure of these, by key, in all versions, instead: .pdf, .png or .jpg",
            type=names,
        ),
    ),
    _section(
        "",
        ("import",),
        Flag("--from", "DIR|TAR", "folder, .tar or .tar.gz in the released layout (required)"),
        _OUTPUT,
        Flag("--split", "A,B", "splits to import", ("val",), names),
        *_FILES,
    ),
    _section(
        "",
        ("models",),
        Flag("action", "list|fetch", "what to do", choices=("list", "fetch")),
        Flag("pattern", "PATTERN", "list: names that match, such as 'resnet*'", nargs="?"),
        Flag("--to", "DIR", "fetch: folder that weights are stored in"),
    ),
    _section(
        "input and output",
        _GENERATING,
        _OUTPUT,
        Flag("--input", "DIR", "images, or a manifest (default: the sample)"),
        Flag("--annotations", "DIR", "boxes (default: beside the images)"),
    ),
    _section(
        "sources",
        _GENERATING,
        Flag("--masks", "DIR", "PNGs, or a COCO .json file, for --segmenter masks"),
        Flag(
            "--taxonomy",
            "FILE|WNIDS",
            "superclass of each class, or WordNet roots (default: ImageNet-9)",
        ),
        Flag("--exclude", "FILE", "list of images to leave out"),
        Flag("--include", "FILE", "list of images to keep, no others"),
    ),
    _section(
        "own data",
        _GENERATING,
        _choice(
            "--objects",
            ("one", "largest", "union", "each"),
            "one: an image with several boxes is rejected; largest: the box with the largest "
            "area inside the image; union: the box around all of them; each: every box is an "
            "image of its own",
        ),
        Flag("--max_box", "X", "largest share of the crop that the box may cover", 0.9, float),
        Flag(
            "--min_visible",
            "X",
            "smallest share of the box that the crop must keep",
            0.5,
            float,
        ),
        Flag(
            "--min_foreground",
            "X",
            "smallest share of the box that the mask must fill",
            0.1,
            float,
        ),
        _choice(
            "--crop",
            ("center", "pad"),
            "center: the shorter side becomes --resize, and the middle --image_size is kept; "
            "pad: the longer side becomes --image_size, and what is missing is black",
        ),
        Flag("--backgrounds", "DIR", "pictures of scenes for mixed_external"),
    ),
    _section(
        "models",
        ("run", *_ANALYSES, "models"),
        Flag(
            "--models",
            "A,B",
            "names, wildcards, @FILE; see: in9 models list (default: efficientnet_lite0)",
            type=names,
        ),
        Flag("--weights", "DIR", "folder to take weights from; see: in9 models fetch"),
    ),
    _section(
        "models",
        ("run", *_ANALYSES),
        Flag("--eval_split", "SPLIT", "split to evaluate on (default: val, or the first)"),
        _choice(
            "--device",
            ("auto", "cpu", "cuda"),
            "where models run; cuda fails if there is no GPU",
        ),
        _choice("--precision", ("fp32", "tf32", "bf16"), "of models: fp32, tf32, bf16", "NAME"),
        Flag(
            "--batch_size", "N", "pictures at a time (default: 32 on a CPU, 256 on a GPU)", type=int
        ),
        _choice(
            "--eval_input",
            ("stored", "native"),
            "stored pixels as they are, or native preprocessing",
            "NAME",
        ),
    ),
    _section(
        "models",
        ("run", "evaluate"),
        Flag(
            "--pixel_cache",
            "MB",
            "decoded pictures that a process keeps (default: memory / 4 / cores)",
            type=int,
        ),
    ),
    _section(
        "models", _ANALYSES, _overwrite("weights"), Flag("--holdout", "X", _HELD_OUT, 0.0, share)
    ),
    _section("models", ("evaluate", "attack"), _ALLOW_OVERLAP),
    _section(
        "dataset",
        _GENERATING,
        Flag("--split", "A,B", "splits to build", ("val",), names),
        _choice(
            "--selection",
            ("in9", "in9l"),
            "in9: images with boxes; in9l: all of them, as original alone",
        ),
        Flag("--variants", "A,B", "versions to make; docs/variants.md", ("all",), names),
        *_FILES,
        Flag("--image_size", "PX", "side of the crop", 224, int),
        Flag("--resize", "PX", "shorter side before it", 256, int),
        _choice(
            "--interpolation",
            ("nearest", "bilinear", "bicubic", "lanczos"),
            "of the resize: nearest, bilinear, bicubic, lanczos",
            "NAME",
        ),
        _choice("--encoding", ("jpg", "png"), "how pictures are stored"),
        Flag("--jpeg_quality", "Q", "quality of JPEG pictures, 1 to 100", 95, int),
        Flag(
            "--segmenter",
            "NAME",
            "what finds the foreground: grabcut, cv2, box, masks or python:...; docs/segmenters.md",
            "grabcut",
        ),
        Flag("--grabcut_seed", "N", "seed of GrabCut, the same for every image", 0, int),
        Flag("--seed", "N", "seed of pairing, selection and noise", 0, int),
        Flag(
            "--per_class",
            "all|min|N",
            "images of a class: all, as many as the smallest has, or N",
            "all",
        ),
        _choice("--mixed_rand", ("any", "other"), "classes that mixed_rand draws from"),
        _switch("--own_background", "an image may get its own background"),
        Flag(
            "--replicates",
            "K",
            "draws of backgrounds that mixed versions are composed with",
            1,
            int,
        ),
        Flag(
            "--limit",
            "N",
            "at most N images of a class, drawn by hash (default: no limit)",
            type=int,
        ),
        _choice("--layers", ("keep", "drop"), "keep layers for the next run"),
        _switch("--dry_run", "only say what would be done, with hours and bytes"),
    ),
    _section("dataset", ("run",), _overwrite("config", "input", "rebuild", "shards", "weights")),
    _section("dataset", ("generate",), _overwrite("config", "input", "rebuild", "shards")),
    _section("leakage", ("run",), Flag("--holdout", "X", _HELD_OUT, 0.0, share), _ALLOW_OVERLAP),
    _section(
        "attack",
        ("attack",),
        Flag(
            "--grid",
            _GRID,
            "foregrounds and backgrounds, spread evenly over the classes: N x N or F x B",
            "all",
            grid,
        ),
        _switch(
            "--early_stop",
            "leave a foreground when a background has turned it: challenge accuracy alone, sooner",
        ),
    ),
    _section(
        "saliency",
        ("saliency",),
        Flag("--maps", "N", "share of saliency on the foreground, shown for N images", 9, count),
        Flag("--variant", "NAME", "version of the images", "original"),
    ),
    _section(
        "training",
        ("train",),
        Flag("--variant", "NAME", "version to train on", "original"),
        Flag("--arch", "NAME", "architecture of timm, see: in9 models list", "resnet50"),
        _switch("--pretrained", "begin with its weights for ImageNet"),
        _switch("--probe", "fit its last layer alone, on frozen weights for ImageNet: minutes"),
        *_LEARNING,
        Flag("--weight_decay", "X", "weight decay of SGD", 1e-4, float),
        Flag("--seed", "N", "seed of training, which decides everything on a CPU", 0, int),
    ),
    _section(
        "images",
        ("train",),
        Flag("--train_split", "NAME", "split to train on (default: train)"),
        Flag("--eval_split", "NAME", "split to validate on (default: val, if there is one)"),
        Flag(
            "--holdout",
            "X",
            "leave this share of the split out and validate on it",
            0.0,
            float,
        ),
    ),
    _section(
        "job",
        ("train",),
        Flag("--output", "DIR", "folder of the training (default: DATASET/models/NAME)"),
        _TRAIN_DEVICE,
        _choice(
            "--precision",
            _TRAIN_PRECISIONS,
            "of training: fp32, tf32, bf16, fp16 (default: on a GPU bf16, or fp16; on a CPU fp32)",
            "NAME",
        ),
        _WORKERS,
        _switch("--overwrite", "begin anew, whatever training the folder holds"),
    ),
    _section(
        "matrix",
        ("matrix",),
        Flag("--in9l", "DIR", "dataset of IN-9L, as a row and a column (default: none)"),
        Flag("--variants", "A,B", "versions to train and to test on (default: all)", type=names),
        _switch("--probe", "fit the last layer of frozen networks alone: minutes on a CPU"),
        Flag(
            "--arch",
            "A,B",
            "networks of timm (default: resnet50; with --probe efficientnet_lite0)",
            type=names,
        ),
        Flag("--train_split", "NAME", "split to train on (default: train)"),
        Flag("--eval_split", "NAME", "split to test on (default: val)"),
        Flag("--holdout", "X", "divide one split: this share of it is tested on", 0.0, share),
        _ALLOW_OVERLAP,
    ),
    _section(
        "training",
        ("matrix",),
        _switch("--pretrained", "begin with weights for ImageNet; a probe always does"),
        *_LEARNING,
        Flag("--seed", "N", "seed of training", 0, int),
        _switch("--overwrite", "train anew where a training with other flags is in the way"),
    ),
    _section(
        "job",
        ("matrix",),
        _TRAIN_DEVICE,
        _choice(
            "--precision",
            _TRAIN_PRECISIONS,
            "of training: fp32, tf32, bf16, fp16 (default: on a CPU fp32)",
            "NAME",
        ),
        _WORKERS,
    ),
    _section(
        "analyses and report",
        ("run", "evaluate"),
        Flag(
            "--imagenet",
            "DIR",
            "measure top-1 accuracy on DIR/val, for the trend (default: published figures)",
        ),
    ),
    _section(
        "analyses and report",
        ("run",),
        Flag(
            "--attack",
            _GRID,
            "adversarial backgrounds, on a grid of N x N or F x B (default: none)",
            type=grid,
        ),
        Flag(
            "--saliency",
            "N",
            "share of saliency on the foreground, shown for N images (default: none)",
            type=count,
        ),
    ),
    _section(
        "analyses and report",
        (*_GRAPHS, "matrix", "report"),
        _choice(
            "--pictures",
            ("sample", "none"),
            "pictures in report.html; none for sharing it without",
        ),
    ),
    _section(
        "analyses and report",
        ("run", "evaluate"),
        Flag(
            "--fail_if",
            "COND",
            "exit code 3 if a model's whole interval satisfies it: 'bg_gap>0.1'",
            type=names,
            action="extend",
        ),
    ),
    _section(
        "analyses and report",
        ("report",),
        Flag(
            "--columns",
            "A,B",
            "versions and bg_gap, in the order of results/latex/headline.tex (default: original, "
            "only_bg_t, mixed_same, mixed_rand and bg_gap, as far as they are there)",
            type=names,
        ),
    ),
    _section(
        "schedule",
        (*_GRAPHS, "matrix", "report"),
        Flag(
            "--publish", "DIR", "copy dataset and results there, as a new version (default: none)"
        ),
        Flag("--keep", "N", "older versions that stay there (default: all)", type=int),
    ),
    _section(
        "runners",
        _GRAPHS,
        Flag(
            "--gpu",
            "TYPE[:MACHINE][,OPTION]",
            "GPU of the workers that run models, such as nvidia-l4:g2-standard-8",
        ),
        Flag("--gpus", "N", "groups of shards that meet models at a time (default: 1)", type=count),
    ),
    _section(
        "general",
        (*_GRAPHS, *_TRAINING, "models", "report", "export", "import", "verify"),
        Flag("--config", "FILE", "TOML whose keys are flags of the command (default: none)"),
    ),
)
