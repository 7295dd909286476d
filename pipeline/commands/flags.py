"""The flags of all commands, in one table that the parser, the reference and the template read.

Flags that configure a dataset have the names and defaults of `pipeline.dataset.config`. That module
is not imported here, because it needs OpenCV, and `--help` should not wait for the import.
"""

from collections.abc import Iterator

from pipeline.analyses import ANALYSES
from pipeline.runtime.flag_types import (
    ALLOW_OVERLAP,
    LEARNING,
    RENDERINGS,
    TRAIN_JOB,
    WATERBIRDS,
    Flag,
    Section,
    choice,
    comma_separated,
    count,
    overwrite,
    section,
    share,
    statement,
    switch,
)


def sections_of(command: str) -> Iterator[Section]:
    """Yields the sections of a command's flags, in the order of its help."""
    return (
        section for section in SECTIONS if section.commands is None or command in section.commands
    )


def flags_of(command: str) -> list[Flag]:
    """Returns the flags of a command, in the order of its help."""
    return [flag for section in sections_of(command) for flag in section.flags]


CORE = (
    *("output", "input", "dataset", "annotations", "recipe", "models", "device", "split"),
    *("variants", "segmenter", "taxonomy", "replicates", "limit", "dry_run", "overwrite"),
    *("baseline", "fail_if", "publish", "config"),
    *(flag.dest for analysis in ANALYSES for _, flag in analysis.job_flags),
)
"""Flags that `--help` shows if a command has many flags; `--help all` shows the others, too."""
NOT_IN_TRANSFORMS = (
    *("config", "dry_run", "publish", "keep", "baseline", "fail_if", "if_open"),
    *("gpu", "gpus", "dask"),
    *(flag.dest for analysis in ANALYSES for _, flag in analysis.job_flags),
)
"""Flags that `in9.Generate` and `in9.Evaluate` refuse, because each builds only one stage: they are
for the command line, for what a command does besides this stage, or for the workers, which the
pipeline around the stage chooses."""

_GENERATING = ("run", "generate")
_ANALYSES = tuple(one.name for one in ANALYSES if one.command and one.runs_models)
_OWN = tuple(one.name for one in ANALYSES if one.command and not one.runs_models)
"""Commands of analyses that run models on a graph, and of those with a loop of their own."""
_GRAPHS = (*_GENERATING, *_ANALYSES)
_HELD_OUT = (
    "test only on this share of the images, which training with the same --holdout leaves out"
)

_OUTPUT = Flag("--output", "DIR", "dataset folder (required)")
_FILES = (
    Flag(
        "--formats",
        "A,B",
        "file formats of the pictures: parquet, webdataset",
        ("parquet", "webdataset"),
        comma_separated,
    ),
    Flag("--images_per_shard", "N", "approximate number of images in an output shard", 1024, int),
)
SECTIONS = (
    section(
        "",
        (*_ANALYSES, "train", *_OWN, "report", "export", "verify"),
        Flag("--dataset", "DIR", "finished dataset folder (required)"),
    ),
    section(
        "",
        ("export",),
        Flag(
            "--to",
            "DIR",
            "folder to export to; with --images or --layout answers, the file to write (required)",
        ),
        Flag("--split", "NAME", "split to export", "val"),
        choice(
            "--layout",
            ("released", "recipe", "answers", "waterbirds"),
            "released: a file for each picture, as in the authors' release; recipe: a file without "
            "a pixel, from which --recipe makes the same dataset; answers: the table of "
            "answers:FILE to fill, as .csv (paths of the released layout) or .parquet (pictures); "
            "waterbirds: mixed pictures and metadata.csv",
            "NAME",
        ),
        Flag(
            "--images",
            "A,B",
            "instead, draw a figure of these images (by key) in all variants, with the models' "
            "answers: .pdf, .png, .jpg or .html",
            type=comma_separated,
        ),
        *WATERBIRDS,
    ),
    section(
        "",
        ("import",),
        Flag("--from", "DIR|TAR|paper:", "the released layout; paper: fetches the authors' own"),
        Flag("--output", "DIR", "dataset folder to make of it"),
        Flag("--dataset", "DIR", "instead, a finished dataset, to add the pictures of --variant"),
        Flag(
            *("--variant", "NAME=DIR|TAR,...", "pictures of its images from outside, as NAME"),
            type=comma_separated,
            action="extend",
        ),
        Flag("--split", "A,B", "splits to import", ("val",), comma_separated),
        *_FILES,
    ),
    section(
        "",
        ("show",),
        Flag("photo", "PHOTO", "picture of an object (required)", nargs="?"),
        Flag(
            "--box",
            "X0,Y0,X1,Y1",
            "box around the object in pixels of the file, with column X1 and row Y1; EXIF rotation "
            "does not count (required)",
            type=comma_separated,
        ),
        Flag("--to", "FILE", "figure to write: .pdf, .png, .jpg or .html (required)"),
        Flag(
            "--class",
            "NAME",
            "superclass of the object, which decides the background of mixed_same and which "
            "answers are right (default: the first model's answer to the original)",
        ),
        Flag(
            "--dataset",
            "DIR",
            "dataset to take backgrounds, classes and sizes from (default: the embedded sample)",
        ),
    ),
    section(
        "",
        ("models",),
        Flag(
            "action",
            "list|fetch",
            "list: show the models that can be loaded; fetch: store their weights",
            choices=("list", "fetch"),
        ),
        Flag("pattern", "PATTERN", "list: show the names that match, such as 'resnet*'", nargs="?"),
        Flag("--to", "DIR", "fetch: folder to store the weights in"),
    ),
    section(
        "input and output",
        _GENERATING,
        _OUTPUT,
        Flag("--input", "DIR", "folder of images, or an input table (default: embedded sample)"),
        Flag(
            "--input_columns",
            "NAME=COLUMN,...",
            "columns of the input table that have other names than in docs/data.md, such as "
            "image=filename,class=species",
            type=comma_separated,
        ),
        Flag("--annotations", "DIR", "bounding boxes (default: beside the images)"),
        Flag(
            "--recipe",
            "DIR",
            "recipe (in9 export --layout recipe), from which the same pictures make the same "
            "dataset, without annotations (default: the one that --output was made from)",
        ),
        switch(
            "--allow_partial",
            "with --recipe: leave out images whose pictures are missing or others",
        ),
    ),
    section(
        "card",
        (*_GENERATING, "import"),
        Flag(
            "--creator",
            "NAME",
            "who made the dataset, for its card and Croissant; it stays until another value is "
            "given, such as an empty one",
            type=statement,
        ),
        Flag(
            "--contact", "ADDRESS", "e-mail or URL of who maintains it; stays, too", type=statement
        ),
        Flag(
            "--terms",
            "TEXT",
            "terms of its pictures and masks; behind `masks:`, of the masks alone; stay, too",
            type=statement,
        ),
    ),
    section(
        "sources",
        _GENERATING,
        Flag("--masks", "DIR", "folder of PNG masks, or COCO .json file, for --segmenter masks"),
        Flag("--taxonomy", "FILE", "file that maps classes to superclasses (default: ImageNet-9)"),
        Flag("--exclude", "FILE", "file that lists images to leave out"),
        Flag("--include", "FILE", "file that lists the images to keep; all others are left out"),
    ),
    section(
        "own data",
        _GENERATING,
        choice(
            "--objects",
            ("one", "largest", "union", "each"),
            "one: reject an image with several boxes; largest: take the box with the largest area "
            "inside the image; union: take the box around all of them; each: treat every box as "
            "an image of its own",
        ),
        Flag("--max_box", "X", "largest share of the crop that the box may cover", 0.9, float),
        Flag("--min_visible", "X", "smallest share of the box that the crop must keep", 0.5, float),
        Flag(
            "--min_foreground", "X", "smallest share of the box that the mask must fill", 0.1, float
        ),
        choice(
            "--crop",
            ("center", "pad"),
            "center: resize the shorter side to the key resize and keep the central square of "
            "--image_size; pad: resize the longer side to --image_size and fill up with black",
        ),
        Flag("--backgrounds", "DIR", "folder of scene pictures for mixed_external"),
    ),
    section(
        "models",
        ("run", *_ANALYSES, "models", "show"),
        Flag(
            "--models",
            "A,B",
            "model names, wildcards, LABEL:=NAME, FAMILY#SEED:=NAME or @FILE; see: in9 models list "
            "(default: efficientnet_lite0)",
            type=comma_separated,
        ),
        Flag("--weights", "DIR", "folder to load weights from; see: in9 models fetch"),
    ),
    section(
        "models",
        ("run", *_ANALYSES),
        Flag("--eval_split", "SPLIT", "split to test on (default: val, else the first not train)"),
        choice(
            "--device",
            ("auto", "cpu", "cuda"),
            "device to run models on; cuda fails if there is no GPU",
        ),
        choice(
            "--precision",
            ("fp32", "tf32", "bf16"),
            "numeric precision of the models: fp32, tf32, bf16",
            "NAME",
        ),
        switch("--compile", "compile networks by torch.compile; takes a minute for each"),
        Flag(
            "--batch_size",
            "N",
            "pictures in a batch (default: 32 on a CPU, 256 on a GPU)",
            type=count,
        ),
        choice(
            "--eval_input",
            ("stored", "native"),
            "stored: feed stored pixels as they are; native: use each model's own preprocessing",
            "NAME",
        ),
    ),
    section(
        "models",
        ("run", "evaluate"),
        choice(
            "--missing_answers",
            ("refuse", "wrong"),
            "what to do if a file of answers:FILE lacks some: refuse it, or count them as wrong",
        ),
        Flag(
            "--pixel_cache",
            "MB",
            "memory for decoded pictures in each process (default: memory / 4 / processes)",
            type=int,
        ),
    ),
    section(
        "models", _ANALYSES, overwrite("weights"), Flag("--holdout", "X", _HELD_OUT, 0.0, share)
    ),
    section(
        "models",
        tuple(one.name for one in ANALYSES if one.command and one.refuses_overlap),
        ALLOW_OVERLAP,
    ),
    section(
        "dataset",
        _GENERATING,
        Flag("--split", "A,B", "splits to build", ("val",), comma_separated),
        choice(
            "--selection",
            ("in9", "in9l"),
            "in9: images with boxes, in all variants; in9l: all images, in original only",
        ),
        Flag(
            "--variants", "A,B", "variants to make; see docs/variants.md", ("all",), comma_separated
        ),
        RENDERINGS,
        *_FILES,
        Flag("--image_size", "PX", "side length of the crop", 224, int),
        Flag("--resize", "PX", "length of the shorter side before the crop", 256, int),
        choice(
            "--interpolation",
            ("nearest", "bilinear", "bicubic", "lanczos"),
            "interpolation when resizing: nearest, bilinear, bicubic, lanczos",
            "NAME",
        ),
        choice("--encoding", ("jpg", "png"), "image format of the stored pictures"),
        Flag("--jpeg_quality", "Q", "quality of JPEG pictures, 1 to 100", 95, int),
        Flag(
            "--segmenter",
            "NAME",
            "foreground segmentation: grabcut, cv2, box, masks, python:...; see docs/segmenters.md",
            "grabcut",
        ),
        Flag("--grabcut_seed", "N", "seed of GrabCut, the same for every image", 0, int),
        Flag("--seed", "N", "seed of pairing, selection and noise", 0, int),
        Flag(
            "--per_class",
            "all|min|N",
            "images per class: all, min (as many as the smallest class has) or N",
            "all",
        ),
        choice(
            "--mixed_rand",
            ("any", "other"),
            "classes that mixed_rand draws backgrounds from; other excludes the image's own",
        ),
        switch("--own_background", "allow mixed variants to give an image its own background"),
        Flag("--replicates", "K", "number of background draws for each mixed variant", 1, int),
        Flag(
            "--limit",
            "N",
            "use at most N images of a class, drawn by hash (default: no limit)",
            type=int,
        ),
        choice("--layers", ("keep", "drop"), "whether to keep layers for the next run"),
    ),
    section(
        "dataset",
        (*_GENERATING, "evaluate"),
        switch(
            "--dry_run",
            "report what would be done, with estimates of time and size, and write nothing",
        ),
    ),
    section("dataset", ("run",), overwrite("config", "input", "rebuild", "shards", "weights")),
    section("dataset", ("generate",), overwrite("config", "input", "rebuild", "shards")),
    section("leakage", ("run",), Flag("--holdout", "X", _HELD_OUT, 0.0, share), ALLOW_OVERLAP),
    *(section for analysis in ANALYSES for section in analysis.sections),
    section(
        "training",
        ("train",),
        Flag("--variant", "NAME", "variant to train on", "original"),
        Flag(
            "--arch",
            "NAME",
            "timm architecture; with --probe any encoder of --models; see: in9 models list",
            "resnet50",
        ),
        switch("--pretrained", "start from weights trained on ImageNet"),
        switch("--probe", "fit only a last layer, on a frozen encoder; takes minutes"),
        *LEARNING,
        Flag("--weight_decay", "X", "weight decay of SGD", 1e-4, float),
    ),
    section(
        "images",
        ("train",),
        Flag("--train_split", "NAME", "split to train on (default: train)"),
        Flag("--eval_split", "NAME", "split to validate on (default: val, if there is one)"),
        Flag(
            "--holdout",
            "X",
            "leave this share of the split out of training, and validate on it",
            0.0,
            share,
        ),
    ),
    section(
        "job",
        ("train",),
        Flag(
            "--output",
            "DIR",
            "folder of the training; with several --seeds, of a folder for each, such as seed0 "
            "(default: DATASET/models/NAME)",
        ),
        *TRAIN_JOB,
        switch("--overwrite", "start over, whatever training the folder holds"),
    ),
    *(
        section("analyses and report", commands, flag)
        for analysis in ANALYSES
        for commands, flag in analysis.job_flags
    ),
    section(
        "analyses and report",
        (*_GRAPHS, *_OWN, "report"),
        choice(
            "--pictures",
            ("sample", "none"),
            "pictures in report.html; none leaves them out, so that it can be shared",
        ),
    ),
    section(
        "analyses and report",
        ("run", "evaluate", "report"),
        Flag(
            "--baseline",
            "ENTRY|DIR",
            "model or family to compare others with, of this dataset or a folder of results on it",
        ),
        Flag(
            "--fail_if",
            "COND",
            "exit with code 3 if a model's whole interval satisfies COND, such as 'bg_gap>0.1' or "
            "'bg_gap > baseline + 0.02' or 'no_fg < original - 0.1'",
            type=comma_separated,
            action="extend",
        ),
        choice(
            "--if_open",
            ("pass", "fail"),
            "what a condition does that the interval neither satisfies nor rules out; fail: exit "
            "with code 4",
        ),
    ),
    section(
        "analyses and report",
        ("report",),
        Flag(
            "--results",
            "DIR,LAB=DIR",
            "folders with results on the same dataset, to show with its own; LAB, else the creator "
            "on its card, tells models of one name apart (default: none)",
            type=comma_separated,
        ),
        Flag(
            "--columns",
            "A,B",
            "columns of results/latex/headline.tex: variants and bg_gap, in this order (default: "
            "original, only_bg_t, mixed_same, mixed_rand and bg_gap, if the dataset has them)",
            type=comma_separated,
        ),
    ),
    section(
        "schedule",
        (*_GRAPHS, *_OWN, "report"),
        Flag(
            "--publish", "DIR", "copy dataset and results to DIR as a new version (default: none)"
        ),
        Flag("--keep", "N", "older published versions to keep (default: all)", type=int),
    ),
    section(
        "runners",
        ("run", *_ANALYSES),
        Flag(
            "--gpu",
            "TYPE[:MACHINE][,OPTION]",
            "GPU of the Dataflow workers that run models, such as nvidia-l4:g2-standard-8",
        ),
    ),
    section(
        "runners",
        _GRAPHS,
        Flag(
            "--gpus",
            "N",
            "blocks of each model's work, which run in parallel; several on this machine have a "
            "process and a GPU each (default: 1 on this machine, else as many as the work fills)",
            type=count,
        ),
        Flag(
            "--dask",
            "ADDRESS",
            "Dask's scheduler, whose workers work on the pictures: tls://HOST:PORT, "
            "tcp://127.0.0.1:PORT, its file, or auto (default: none; this machine does)",
        ),
    ),
    section(
        "general",
        None,
        Flag("--config", "FILE", "TOML file of flags, for one command or several (default: none)"),
    ),
)
