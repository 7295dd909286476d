"""The reference of flags, columns and reasons, from the code.

`python -m pipeline.commands.reference` prints it; `docs/reference.md` keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from pipeline.analyses.attack.tables import ATTACK_COLUMNS, BACKGROUND_COLUMNS
from pipeline.analyses.matrix.tables import MATRIX_COLUMNS
from pipeline.analyses.saliency.results import SALIENCY_COLUMNS
from pipeline.commands.flags import Flag, sections_of
from pipeline.commands.meanings import REASONS, meaning
from pipeline.commands.parser import COMMANDS
from pipeline.dataset.records import RECORD_SCHEMA
from pipeline.dataset.sinks import sample_schema
from pipeline.evaluate.comparisons import COMPARISON_COLUMNS
from pipeline.evaluate.results import PREDICTION_SCHEMA
from pipeline.generate.compose import index_schema
from pipeline.report.tables import TABLES
from pipeline.report.trend import TREND_COLUMNS
from transforms.filters import Reason

RESULTS: Mapping[str, tuple[Sequence[str], str]] = {
    **{name: (table.columns, table.about) for name, table in TABLES.items()},
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


if __name__ == "__main__":
    main()
