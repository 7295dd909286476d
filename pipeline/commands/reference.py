"""The reference of commands, flags, columns and rejection reasons.

`python -m pipeline.commands.reference` prints it; `docs/reference.md` is its output.

A column means the same in every table that has it, unless the type of a table's rows says something
else. For other files, such columns are named `table.column`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from pipeline.analyses import ANALYSES
from pipeline.commands.command_line import COMMANDS
from pipeline.commands.flags import sections_of
from pipeline.dataset.config import ComposeConfig
from pipeline.dataset.records import RECORD_SCHEMA
from pipeline.dataset.sinks import sample_schema
from pipeline.evaluate.results import PREDICTION_SCHEMA, Table
from pipeline.generate.compose import index_schema
from transforms.codec import MAX_PIXELS, MAX_SCANS
from transforms.filters import Reason

TABLES: Mapping[str, Table] = {
    table.name: table for analysis in ANALYSES for table in analysis.parts.tables
}
"""Tables of `results/`, by name."""

FILES: Mapping[str, tuple[str, pa.Schema, str]] = {
    "samples": (
        "parquet/<variant>/<split>-*.parquet",
        sample_schema(()),
        "a picture; in `webdataset/`, `<key>.jpg` or `.png` is the image, `<key>.cls` the label "
        "and `<key>.json` the other columns",
    ),
    "index": (
        "index/<split>-*.parquet",
        index_schema(ComposeConfig()),
        "a source image, accepted or not; with `--objects each`, an object. Further draws of "
        "`--replicates` have columns of their own. The index of an imported dataset has three more "
        "columns for each `_bg_key`: the background that the file name claimed (`_bg_named`), and "
        "the pixel differences to the best and the next best background (`_bg_difference`, "
        "`_bg_next_difference`)",
    ),
    "records": (
        "layers/<split>-*.parquet",
        RECORD_SCHEMA,
        "a source image (or object), with the position of its layer in the tar beside the table",
    ),
    "predictions": (
        "results/<model>/predictions/<split>-*.parquet",
        PREDICTION_SCHEMA,
        "a model's prediction for a picture, by one label rule",
    ),
}
"""Parquet files: name to (path, schema, description of a row)."""

_KEYS = "Keys of the file"
EXIT_CODES = {
    0: "done, or nothing to do. Some of several models may have failed: each has a line on "
    "standard error, and a row with its `error` in the tables",
    1: "the job failed, or all of its models did, or there was no image to run them on; "
    "`--fail_if` could not be tested because a model failed or lacks results; `in9 models fetch` "
    "could not fetch a model; `in9 verify` found faults. The same command resumes where it stopped",
    2: "wrong usage or unreadable input; one line on standard error says what to do",
    3: "a condition of `--fail_if` holds",
    4: "with `--if_open fail`: no condition of `--fail_if` holds, and all could be tested, but one "
    "is open",
}


def reference() -> str:
    """Returns docs/reference.md without the line break at its end."""
    graphs = ", ".join(f"`in9 {name}`" for name, row in COMMANDS.items() if row.has_graph)
    blocks = (
        "# Reference",
        "Made from the code by `python -m pipeline.commands.reference > docs/reference.md`.",
        "## Commands",
        _table(
            ("command", "does", "example"),
            [(f"`in9 {name}`", row.text, f"`{row.example}`") for name, row in COMMANDS.items()],
        ),
        f"{graphs} pass flags that they do not know, such as `--runner` and "
        "`--direct_num_workers`, to Apache Beam.",
        _table(("exit code", "meaning"), [(str(code), EXIT_CODES[code]) for code in EXIT_CODES]),
        "## Flags",
        "A flag without a default value says what happens by default. Lists are separated by "
        "commas. Dashes in the name of a flag count as underscores: `--dry-run` is `--dry_run`. "
        "`in9 COMMAND --help all` lists all flags of a command, and names its keys.",
        "`--config FILE` reads flags, and [keys that have no flag](#keys-of-the-file), [from a "
        "TOML file](schedule.md#a-file-of-flags). A list of values is a TOML list, and `true` sets "
        "a flag that needs no value.",
        *_flags(),
        "## Tables of results",
        "Shares and accuracies are fractions. Their intervals are Wilson's unless the row says "
        "otherwise. Units are groups of images, or single images if they have no groups; Wilson's "
        "intervals treat images of a group as correlated. [results.md](results.md) explains the "
        "measures.",
        _table(
            ("file", "a row holds", "columns"),
            [
                (
                    f"`results/{name}.csv`",
                    table.description,
                    " ".join(f"`{column}`" for column in table.columns),
                )
                for name, table in TABLES.items()
            ],
        ),
        _columns(),
        "## Parquet files",
        *(block for name in FILES for block in _file(name)),
        "## Reasons of rejection",
        "Reasons are listed in the order in which they are checked: an image gets the first that "
        "applies, as its `status` in `index/`.",
        _table(("reason", "meaning"), [(f"`{reason}`", REASONS[reason]) for reason in Reason]),
    )
    return "\n\n".join(blocks)


def _flags() -> Iterator[str]:
    """Yields headings and tables of flags, by section; commands share rows of equal flags."""
    sections: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for command in COMMANDS:
        for title, _, flags in sections_of(command):
            heading = title[:1].upper() + title[1:] or "Of single commands"
            for flag in flags:
                name = "" if flag.name == flag.dest else flag.name
                shown = f"{flag.dest if flag.in_file else name} {flag.metavar}".strip()
                rows = sections.setdefault(_KEYS if flag.in_file else heading, {})
                default = flag.default_text and f"`{flag.default_text}`"
                rows.setdefault((f"`{shown}`", default, flag.help), []).append(command)
    # Keys stand last.
    for title, rows in sorted(sections.items(), key=lambda section: section[0] == _KEYS):
        yield f"### {title}"
        yield _table(
            ("key" if title == _KEYS else "flag", "default", "description", "commands"),
            [(*row, ", ".join(commands)) for row, commands in rows.items()],
        )


def _columns() -> str:
    """Returns the table of columns, by name; those that mean the same share a row."""
    columns: dict[tuple[str, str], list[str]] = {}
    for name, table in TABLES.items():
        for column in table.columns:
            columns.setdefault((column, meaning(name, column)), []).append(name)
    return _table(
        ("column", "meaning", "tables"),
        [(f"`{name}`", text, ", ".join(of)) for (name, text), of in sorted(columns.items())],
    )


def _file(name: str) -> tuple[str, ...]:
    """Returns heading, description and columns of a Parquet file."""
    path, schema, row = FILES[name]
    kinds = {  # Without the dictionary encoding of their storage.
        one.name: one.type.value_type if pa.types.is_dictionary(one.type) else one.type
        for one in schema
    }
    return (
        f"### {name}",
        f"`{path}`. A row holds {row}.",
        _table(
            ("column", "type", "meaning"),
            [(f"`{column}`", f"`{kinds[column]}`", meaning(name, column)) for column in kinds],
        ),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows)
    return "\n".join(
        (f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {line} |" for line in lines))
    )


COLUMNS: Mapping[str, str] = {
    # Models, and how they were run.
    "model": "name of the model as given to `--models`, or as matched by a wildcard; its label "
    "if it has one",
    "label_rule": "`argmax_then_map`, the paper's rule: the highest of all outputs, which is "
    "wrong if it belongs to none of the classes; `mapped_only`: the highest of the outputs "
    "that belong to a class; or `closed_choice`: the class that the model has named itself",
    "split": "split that was evaluated",
    "input_size": "side length of the model's input, in pixels",
    "eval_input": "`--eval_input`: `stored` or `native`",
    "precision": "numeric precision (`--precision`); `-compiled` follows with `--compile`",
    "device": "`cpu` or `cuda`; `cpu+cuda` if each computed a part",
    "weights_sha256": "SHA-256 of the weights' tensors, whichever file holds them",
    "dataset": "fingerprint of the dataset, as in `manifest.json`",
    "error": "error of a model that failed, whose measures are then empty",
    "holdout": "share of the split that was tested on; 0 means all of it",
    "overlap": "number of the row's images that the model was trained on; empty if unknown",
    # Measures.
    "variant": "variant of the images, `bg_gap`, or `bg_gap_X`",
    "predictions.variant": "variant of the picture",
    "n": "number of images measured (with `--objects each`, of objects); for a gap or a "
    "comparison, of foregrounds",
    "pictures": "number of pictures of these images: one for each image, and in mixed variants "
    "one for each draw; under `--holdout`, [those that count](training.md#leakage)",
    "correct": "number of pictures classified correctly",
    "predictions.correct": "whether the prediction equals the label",
    "accuracy": "correct / pictures, averaged over draws; for the variant `bg_gap`, the gap",
    "ci_low": "lower end of the 95 % interval",
    "ci_high": "upper end of the 95 % interval",
    "outside": "number of predictions outside of all classes",
    "replicates": "number of background draws that the figure is averaged over",
    "seed_sd": "standard deviation of the figure over draws; empty with a single draw",
    "images": "number of images measured",
    "units": "effective number of units (groups of images, or images if they have no groups): "
    "1 / the sum of the squares of their shares of the pictures, in the role, foreground or "
    "background, in which it is smaller; t has one degree of freedom less",
    "power.units": "number of units that were resampled",
    "chance": "accuracy of a constant prediction: share of the largest class of the pictures",
    # Images.
    "key": "key of the image, usually its file name without the suffix; for an object, "
    "followed by `_` and its number",
    "image": "encoded bytes and a file name",
    "fg_key": "key of the foreground's image",
    "bg_key": "image or scene that the background was drawn from; null if none was, or unknown",
    "label": "index of the true class",
    "bg_label": "index of the background's class",
    "bg_wnid": "`wnid` of the background's image",
    "wnid": "WordNet id of the image's class; in custom data, the name of the class",
    "imagenet_index": "index of the image's class among ImageNet's 1000",
    "group": "group of the image, such as a scene or a session; null if it has none",
    "prediction": "index of the predicted class; -1 if it is outside of all classes",
    "output": "index of the model output that decided the prediction, or the label that the "
    "model has named; -1 if it has named none, -2 if it has not answered",
    "top1_score": "softmax probability of `output`; null without scores",
    "true_score": "softmax probability of the true class, summed over its outputs; null "
    "without scores",
    "logits": "all outputs of the model, kept only under `argmax_then_map` for at most 5,000 "
    "pictures of `only_bg_t`, which the power's probe is fitted to; else null",
    "of": "identifier of what the prediction depends on: weights, evaluation settings and the "
    "file of the picture",
    "box": "x0, y0, x1, y1 in output pixels; x1 and y1 are exclusive",
    "fg_fraction": "share of the picture that is foreground",
    "path": "path of the source file relative to the input, at the time its shard was made",
    "status": "`accepted`, or the reason for the rejection",
    "detail": "details of the rejection",
    "width": "width of the source image, in pixels",
    "height": "height of the source image, in pixels",
    "source_md5": "MD5 of the source file (or of the picture in it), hexadecimal",
    "native_box": "xmin, ymin, xmax, ymax in source pixels, as given to the segmenter",
    "mask_over_box": "foreground pixels / pixels of the box",
    "selected": "whether the image is in the dataset: accepted, and kept by `--per_class`",
    "object": "number of the box within its image, from 1; 0 if the whole image was rejected; "
    "null without `--objects each`",
    "segmenter": "method, version and parameters of the segmenter that made the mask",
    "_bg_key": "key of the background's image in this variant; null if the variant lacks it",
    "source_digest": "digest of all that the layer depends on: picture, annotation, mask, key, "
    "class, group and configuration",
    "layer_digest": "digest of the layer",
    "image_offset": "offset of the cropped image in the shard's tar, in bytes",
    "image_length": "length of the cropped image, in bytes",
    "only_bg_t_offset": "offset of the tiled background, in bytes",
    "only_bg_t_length": "length of the tiled background, in bytes",
    "mask_offset": "offset of the mask, in bytes",
    "mask_length": "length of the mask, in bytes",
}
"""Meanings of columns. A key is `table.column` if a table needs its own words, else the column's
name. A key that begins with `_` stands for all columns whose names end with it."""

REASONS: Mapping[Reason, str] = {
    Reason.INVALID_KEY: "the stem of the file name cannot be a key: it is empty, longer than "
    "200 bytes, or contains a dot, a slash, a backslash or an unprintable character",
    Reason.DUPLICATE_KEY: "another image has the same key; the one with the lowest MD5 is kept",
    Reason.EXCLUDED: "`--exclude` lists the image, or `--include` does not",
    Reason.MISSING_ANNOTATION: "the image has no box, or with `--segmenter masks` no mask",
    Reason.UNREADABLE_ANNOTATION: "its annotation or mask is broken, no file, or too large "
    "([sizes](data.md#what-is-refused))",
    Reason.UNDECODABLE: "the image is no file, truncated, empty, in an unknown format, a JPEG "
    f"with more than {MAX_SCANS} scans, or its file is too large "
    "([sizes](data.md#what-is-refused))",
    Reason.TOO_MANY_PIXELS: f"the image has more than {MAX_PIXELS:,} pixels and is not "
    "decoded, or is so narrow that it would have more once resized",
    Reason.SIZE_MISMATCH: "the annotation or the mask names another size than the image has",
    Reason.NOT_ONE_BOX: "the image has no object, or several (`--objects`)",
    Reason.INVALID_BOX: "the box holds no pixel of the image",
    Reason.BOX_TOO_LARGE: "the box covers more than 0.9 of the crop (`max_box`)",
    Reason.BOX_OFF_CENTER: "less than half of the box is inside the crop (`min_visible`)",
    Reason.SEGMENTATION_FAILED: "no foreground was found, or it fills less than 0.1 of the box "
    "(`min_foreground`)",
    Reason.NO_TILE: "no strip of background is left beside the box to tile the picture with",
    Reason.NO_BACKGROUND: "no other image can give it a background in every mixed variant",
    Reason.MISSING_SOURCE: "the recipe has the image, and the input does not (`--allow_partial`)",
    Reason.SOURCE_DIFFERS: "the input's picture of this name has other pixels than the "
    "recipe's (`--allow_partial`)",
}
"""Meanings of rejection reasons, in the order in which they are checked."""


def meaning(table: str, column: str) -> str:
    """Returns the meaning of a column of a table; raises KeyError if it has none here.

    >>> meaning("gaps", "gap")
    'accuracy on `mixed_same` - accuracy on `mixed_rand`'
    """
    if table in TABLES and column in TABLES[table].meanings:
        return TABLES[table].meanings[column]
    endings = (name for name in COLUMNS if name.startswith("_") and column.endswith(name))
    for name in (f"{table}.{column}", column, *endings):
        if name in COLUMNS:
            return COLUMNS[name]
    raise KeyError(f"describe the column {column} of {table} in {__name__}")


if __name__ == "__main__":
    print(reference())
