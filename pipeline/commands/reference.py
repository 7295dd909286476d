"""The reference of flags, columns and reasons, from the code.

`python -m pipeline.commands.reference` prints it; `docs/reference.md` keeps it.

What columns and rejection reasons mean, for the reference (`pipeline.commands.reference`).

A column of one name means the same in every table; where a table needs other words, its entry
is `table.column`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import pyarrow as pa

from pipeline.analyses.attack.attack_results import ATTACK_COLUMNS, BACKGROUND_COLUMNS
from pipeline.analyses.matrix.matrix_results import MATRIX_COLUMNS
from pipeline.analyses.saliency.saliency_results import SALIENCY_COLUMNS
from pipeline.commands.flags import Flag, sections_of
from pipeline.commands.parser import COMMANDS
from pipeline.dataset.records import RECORD_SCHEMA
from pipeline.dataset.sinks import sample_schema
from pipeline.evaluate.comparisons import COMPARISON_COLUMNS
from pipeline.evaluate.result_files import PREDICTION_SCHEMA
from pipeline.generate.compose import index_schema
from pipeline.report.tables import TABLES
from pipeline.report.trend_tables import TREND_COLUMNS
from transforms.codec import MAX_PIXELS, MAX_SCANS
from transforms.filters import Reason

RESULTS: Mapping[str, tuple[Sequence[str], str]] = {
    **{name: (table.columns, table.description) for name, table in TABLES.items()},
    "comparisons": (
        COMPARISON_COLUMNS,
        "difference of two models on the same pictures, with its two-way interval: "
        "[intervals](results.md#intervals)",
    ),
    "attack": (ATTACK_COLUMNS, "what backgrounds can do to a model, by both measures"),
    "backgrounds": (BACKGROUND_COLUMNS, "what one background does to a model"),
    "trend": (TREND_COLUMNS, "accuracy of a model on a variant beside its accuracy on ImageNet"),
    "saliency": (
        SALIENCY_COLUMNS,
        "where a model's gradient lies, with the interval of a bootstrap over units",
    ),
    "matrix": (MATRIX_COLUMNS, "accuracy on one version of a model trained on another"),
}
"""Tables of `results/`: name to columns, and what a row is."""

FILES: Mapping[str, tuple[str, pa.Schema, str]] = {
    "samples": (
        "parquet/<variant>/<split>-*.parquet",
        sample_schema(()),
        "a picture; in `webdataset/`, `<key>.jpg` or `.png` is the image, `<key>.cls` the label "
        "and `<key>.json` the other columns",
    ),
    "index": (
        "index/<split>-*.parquet",
        index_schema(1),
        "a source image, accepted or not, or with `--objects each` an object; further draws of "
        "`--replicates` have columns of their own, and an import's index says beside each "
        "`_bg_key` what the file's name claimed (`_bg_named`), and how far off the best background "
        "and the next were (`_bg_difference`, `_bg_next_difference`)",
    ),
    "records": (
        "layers/<split>-*.parquet",
        RECORD_SCHEMA,
        "a source image (or object) and where its layer lies in the tar beside it",
    ),
    "predictions": (
        "results/<model>/predictions/<split>-*.parquet",
        PREDICTION_SCHEMA,
        "what a model says of a picture, by one label rule",
    ),
}
"""Parquet files: name to where they lie, their schema, and what a row is."""

_CONFIG = (
    "# in9 run --config monthly.toml --output imagenet9",
    'input = "/data/imagenet"',
    'models = ["resnet50", "resnet18=trained.pth"]',
    "replicates = 3",
    "own_background = true",
    "direct_num_workers = 8",
)

EXIT_CODES = {
    0: "done, or nothing to do; of several models, some may have failed: each is a line on "
    "standard error, and a row of the tables with its `error`",
    1: "the job failed, as it does when all of its models do; `--fail_if` could not be tested on a "
    "model that failed; `in9 models fetch` lacks one; `in9 verify` found faults. The same command "
    "goes on where it stopped",
    2: "wrong usage or unreadable input; one line says what to do",
    3: "a condition of `--fail_if` holds",
}


def main() -> None:
    """Prints the reference."""
    print("\n".join(reference()))


def reference() -> Iterator[str]:
    """The lines of docs/reference.md."""
    yield "# Reference"
    yield ""
    yield "Made from the code by `python -m pipeline.commands.reference > docs/reference.md`."
    sections = {
        "Commands": _commands,
        "Flags": _all_flags,
        "Tables of results": _results,
        "Parquet files": _files,
        "Reasons of rejection": _reasons,
    }
    for title, lines in sections.items():
        yield from ("", f"## {title}", "")
        yield from lines()


def _commands() -> Iterator[str]:
    rows = [(f"`in9 {name}`", row.text, f"`{row.example}`") for name, row in COMMANDS.items()]
    yield from _table(("command", "does", "example"), rows)
    graphs = ", ".join(name for name, row in COMMANDS.items() if row.has_graph)
    flags = "`--runner`, `--direct_num_workers`"
    yield from ("", f"Flags that {graphs} do not list go to Apache Beam ({flags}).", "")
    codes = [(str(code), text) for code, text in EXIT_CODES.items()]
    yield from _table(("exit code", "means"), codes)


def _all_flags() -> Iterator[str]:
    yield (
        "An empty default is none, or what the help says. Lists are separated by commas. A dash in "
        "a flag's name counts as an underscore: `--dry-run`. `in9 COMMAND --help all` shows all."
    )
    yield ""
    yield (
        "`--config FILE` reads flags from TOML, here or in `gs://`. A key is a flag of the "
        "command, or of Beam where it runs a graph, without the dashes before it, and no other "
        "key is taken; a list is one, and `true` sets a flag that is there or not. What the "
        "command line says replaces what the file says. Paths are relative to where the command "
        "is given."
    )
    yield from ("", "```toml", *_CONFIG, "```")
    for title, rows in _flags().items():
        yield from ("", f"### {title}", "")
        yield from _table(("flag", "default", "is", "of"), rows)


def _results() -> Iterator[str]:
    yield (
        "Shares and accuracies are fractions, their intervals Wilson's unless the row says "
        "another. Units are images, or groups where images have them; Wilson's intervals count "
        "the images of a group as related. [results.md](results.md) says more."
    )
    yield ""
    columns: dict[tuple[str, str], list[str]] = {}
    for name, (names, _) in RESULTS.items():
        for column in names:
            columns.setdefault((column, meaning(name, column)), []).append(name)
    rows = [
        (f"`results/{name}.csv`", about, " ".join(f"`{column}`" for column in names))
        for name, (names, about) in RESULTS.items()
    ]
    yield from _table(("file", "a row is", "columns"), rows)
    yield ""
    rows = [(f"`{name}`", text, ", ".join(of)) for (name, text), of in sorted(columns.items())]
    yield from _table(("column", "means", "in"), rows)


def _files() -> Iterator[str]:
    for number, (name, (path, schema, about)) in enumerate(FILES.items()):
        yield from ([""] if number else [])
        yield from (f"### {name}", "", f"`{path}`. A row is {about}.", "")
        rows = [(f"`{f.name}`", f"`{_type(f.type)}`", meaning(name, f.name)) for f in schema]
        yield from _table(("column", "type", "means"), rows)


def _reasons() -> Iterator[str]:
    yield "In this order: an image has the first that applies. `status` in `index/` says it."
    yield ""
    yield from _table(("reason", "means"), [(f"`{reason}`", REASONS[reason]) for reason in Reason])


def _flags() -> dict[str, list[tuple[str, ...]]]:
    """Rows of flags by the title of their group, those of several commands once."""
    found: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for command in COMMANDS:
        for title, _, flags in sections_of(command):
            known = found.setdefault(title[:1].upper() + title[1:] or "Of single commands", {})
            for flag in flags:
                known.setdefault(_flag(flag), []).append(command)
    return {
        title: [(*row, ", ".join(commands)) for row, commands in rows.items()]
        for title, rows in found.items()
    }


def _flag(flag: Flag) -> tuple[str, str, str]:
    """A flag with its value, its default, and its help."""
    shown = f"{flag.name} {flag.metavar}" if flag.name.startswith("--") else flag.metavar
    return f"`{shown}`", f"`{flag.default_text}`" if flag.default_text else "", flag.help


def _type(kind: pa.DataType) -> str:
    """A type without what only its storage is about."""
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        # Models, and how they were run.
        "model": "as `--models` names it; of a wildcard, the name it stood for",
        "label_rule": "`argmax_then_map`, the paper's: the best of all outputs, wrong if it is "
        "outside of the classes; or `mapped_only`: the best of those inside",
        "split": "that was evaluated",
        "input_size": "side in pixels of what the model saw",
        "eval_input": "`stored` or `native`, of `--eval_input`",
        "precision": "of `--precision`",
        "device": "`cpu` or `cuda`; `cpu+cuda` where a part was made on each",
        "weights_sha256": "of the weights' tensors, whatever file held them",
        "dataset": "its fingerprint, as in `manifest.json`",
        "error": "why the model failed; then the measures are empty",
        "holdout": "share of the split that was tested on; 0 is all of it",
        "overlap": "images of the row that the model was trained on; empty if it does not say",
        # Measures.
        "variant": "version of the images, or `bg_gap`",
        "power.variant": "`only_bg_t`",
        "predictions.variant": "version of the image",
        "n": "images that the row is about (with `--objects each`, objects); of a gap or a "
        "comparison, foregrounds",
        "pictures": "that show these images: one of each, of mixed variants one in every draw",
        "confusion.pictures": "that are so labelled and so predicted, in all draws",
        "correct": "how many of the pictures were classified right",
        "matrix.correct": "how many of the images were classified right",
        "predictions.correct": "whether the prediction is the label",
        "accuracy": "correct / pictures, the mean over draws; of the variant `bg_gap`, the gap",
        "matrix.accuracy": "correct / n, on one draw of mixed variants",
        "power.accuracy": "of the probe, on images it was not fitted to",
        "ci_low": "lower end of the 95 % interval",
        "ci_high": "upper end of the 95 % interval",
        "class_mean_accuracy": "mean over the classes of their accuracies",
        "outside": "predictions that are in none of the classes",
        "gap": "accuracy on `mixed_same` - accuracy on `mixed_rand`",
        "mixed_same": "accuracy on it, mean over its draws",
        "mixed_rand": "accuracy on it, mean over its draws",
        "replicates": "draws of backgrounds that the figure is the mean of",
        "flips.variant": "version of one picture of each pair",
        "other_variant": "version of the other; the same is another draw",
        "flip_rate": "share of pairs of pictures, of one foreground on backgrounds of two "
        "different units, that are given different classes; mean over foregrounds",
        "flips.n": "foregrounds that have such a pair",
        "pairs": "pairs of pictures",
        "rfs": "relative foreground sensitivity, from -1 to 1: above 0 if noise on the foreground "
        "does more harm than on the background; empty, as its interval, where all answers to both "
        "are right, or none is",
        "noise_fg": "accuracy on it",
        "noise_bg": "accuracy on it",
        "seed_sd": "standard deviation of the draws' figures; empty of a single one",
        "first": "a model",
        "second": "the model it is compared with",
        "difference": "first - second",
        "class_name": "of the label",
        "kind": "whether `original`, `mixed_rand` (its first draw) and `only_bg_t` are classified "
        "right: `bg_required` right, wrong, right; `bg_fools` wrong, right, wrong; "
        "`bg_fg_required` right, wrong, wrong; `bg_fg_fools` wrong, right, right; "
        "`bg_irrelevant`: the first two agree",
        "images": "number of images measured",
        "share": "n / images",
        "p_adjusted": "p value of the difference, adjusted by Holm for all pairs of models with "
        "this label rule and variant",
        "per_class.p_adjusted": "p value of the difference to the accuracy on all other classes, "
        "adjusted by Benjamini-Hochberg for the classes of this model, label rule and variant; "
        "empty with a single class",
        "worst_ci_low": "of the worst group: lower end of its interval at 1 - 0.05 / groups, as "
        "it is the worst of so many",
        "worst_ci_high": "upper end of it",
        "is_worst": "whether the group is the variant's worst: its interval ends lowest",
        "bucket": "share of the picture that the foreground takes, as text",
        "fg_low": "lower end of the bucket, which belongs to it",
        "fg_high": "upper end of the bucket, which does not",
        "units": "groups of images that count as one: images where there are no groups",
        "chance": "accuracy of a constant answer: share of the largest class of the pictures",
        "has_power": "whether the whole interval lies above chance",
        # Attack.
        "challenge_accuracy": "share of foregrounds that no background turns wrong, those of "
        "their own class included",
        "challenge_ci_low": "lower end of its 95 % interval",
        "challenge_ci_high": "upper end of its 95 % interval",
        "fooled": "share of foregrounds that a background of another class turns into that "
        "class: the paper's measure; empty after an early stop",
        "fooled_ci_low": "lower end of its 95 % interval",
        "fooled_ci_high": "upper end of its 95 % interval",
        "foregrounds": "how many there were",
        "backgrounds.foregrounds": "of other classes, that it met",
        "backgrounds": "how many there were",
        "full_grid": "whether they were all of the dataset's",
        "early_stop": "whether a foreground was left once a background had turned it",
        "forwards": "composites that the model saw",
        "success": "share of the foregrounds that it turns into its own class",
        # Trend, saliency.
        "imagenet_top1": "top-1 accuracy on ImageNet",
        "imagenet_source": "`measured`, or where it was published",
        "imagenet_n": "images it was measured on",
        "imagenet_input_size": "side in pixels of what the model saw there",
        "method": "of saliency",
        "mass_in_mask": "mean share of the gradient's magnitude inside the foreground mask",
        "mask_area": "mean share of pixels inside the mask",
        "concentration": "mass_in_mask / mask_area; 1 is nowhere in particular",
        # Matrix.
        "train_variant": "that the model was trained on",
        "test_variant": "that it was tested on",
        "arch": "architecture of the model",
        "matrix.method": "`probe` of a frozen network, or `train`",
        "published": "the paper's figure for ResNet-50, table 5",
        "matrix.difference": "accuracy - published",
        "difference_ci_low": "lower end of its 95 % interval, of our accuracy alone",
        "difference_ci_high": "upper end of it",
        "train_n": "images that were trained on",
        "train_split": "that they are of",
        "penalty": "of a probe, [chosen](training.md#linear-probe) among nine; else empty",
        "seed": "of the training",
        "checkpoint": "file of the trained model, which `--models` takes",
        # Images.
        "key": "of the image: the stem of its file",
        "image": "encoded bytes, and a file name",
        "fg_key": "key of the image that the foreground is from",
        "bg_key": "key of the image that the background is from; null where it is its own",
        "label": "number of the true class",
        "backgrounds.bg_key": "key of the image that the background is from",
        "bg_label": "class of the background",
        "bg_wnid": "WordNet id of the background's image",
        "wnid": "WordNet id of the image, or the class's name in data of your own",
        "imagenet_index": "number of its class among ImageNet's 1000",
        "group": "of the image, such as a scene or a session; null where it has none",
        "prediction": "number of the predicted class, -1 outside of them",
        "output": "number of the model's winning output",
        "top1_score": "softmax probability of that output",
        "true_score": "softmax probability of the true class, summed over its outputs",
        "logits": "all of the model's outputs; null but under `argmax_then_map` for at most 5,000 "
        "pictures of `only_bg_t`, which the probe of the power is fitted to",
        "of": "identifies what it is of: weights, evaluation settings, file of the picture",
        "box": "x0, y0, x1, y1 in output pixels; x1 and y1 lie outside",
        "fg_fraction": "share of the picture that is foreground",
        "path": "of the source file, relative to the input, when its shard was made",
        "status": "`accepted`, or the reason it is not",
        "detail": "what else is known of a rejection",
        "width": "of the source image, in pixels",
        "height": "of the source image, in pixels",
        "source_md5": "of the source file (or of the picture in it), hexadecimal",
        "native_box": "xmin, ymin, xmax, ymax in source pixels, as the segmenter was given it",
        "mask_over_box": "foreground pixels / pixels of the box",
        "selected": "whether it is in the dataset: accepted, and not left out by `--per_class`",
        "object": "which of the image's boxes, from 1 on; 0 of an image rejected as a whole",
        "segmenter": "method, version and parameters that made the mask",
        "_bg_key": "key of the background in that variant; null if the image is not in it",
        "source_digest": "identifies image, annotation and configuration",
        "layer_digest": "identifies the layer",
        "image_offset": "of the cropped image in the shard's tar, in bytes",
        "image_length": "its bytes",
        "only_bg_t_offset": "of the tiled background",
        "only_bg_t_length": "its bytes",
        "mask_offset": "of the mask",
        "mask_length": "its bytes",
    }
)
"""By column; a name that begins with `_` is the end of names."""

REASONS: Mapping[Reason, str] = MappingProxyType(
    {
        Reason.INVALID_KEY: "the stem of the file's name cannot be a key: empty, over 200 bytes, "
        "or with a dot, a slash or control signs in it",
        Reason.DUPLICATE_KEY: "another image has the same key; the one with the lowest MD5 stays",
        Reason.EXCLUDED: "`--exclude` lists it, or `--include` does not",
        Reason.MISSING_ANNOTATION: "there is no box for it, or no mask for `--segmenter masks`",
        Reason.UNREADABLE_ANNOTATION: "its annotation or mask is broken or too large "
        "([sizes](sources.md#what-is-refused))",
        Reason.UNDECODABLE: "the image is cut short, empty, in no known format, a JPEG of more "
        f"than {MAX_SCANS} scans, or its file too large ([sizes](sources.md#what-is-refused))",
        Reason.TOO_MANY_PIXELS: f"it has more than {MAX_PIXELS:,} pixels; it is not decoded",
        Reason.SIZE_MISMATCH: "the annotation, or the mask, says another size than the image has",
        Reason.NOT_ONE_BOX: "it has no object or several (`--objects`)",
        Reason.INVALID_BOX: "its box holds no pixel of the image",
        Reason.BOX_TOO_LARGE: "the box takes more than 0.9 of the crop (`--max_box`)",
        Reason.BOX_OFF_CENTER: "less than half of the box is inside the crop (`--min_visible`)",
        Reason.SEGMENTATION_FAILED: "no foreground was found, or less than 0.1 of the box "
        "(`--min_foreground`)",
        Reason.NO_TILE: "no strip of background is left beside the box to tile it with",
        Reason.NO_BACKGROUND: "no other image can give it a background in every mixed variant",
    }
)
"""In protocol order, of which the first wins."""


def meaning(table: str, column: str) -> str:
    """What a column of a table means.

    >>> meaning("gaps", "gap")
    'accuracy on `mixed_same` - accuracy on `mixed_rand`'

    Raises:
      KeyError: nothing is said of it.
    """
    for name in (f"{table}.{column}", column):
        if name in COLUMNS:
            return COLUMNS[name]
    for name in COLUMNS:
        if name.startswith("_") and column.endswith(name):
            return COLUMNS[name]
    raise KeyError(f"say in {__name__} what the column {column} of {table} means")


if __name__ == "__main__":
    main()
