r"""Tables for papers, in LaTeX, and compact text: aligned tables, intervals, short names.

LaTeX tables are of booktabs, in percent, with intervals beneath their estimates. A document needs
`\usepackage{booktabs}`, and includes a table with `\input{headline.tex}`. At a font size of 10
points, no table is wider than 5.5 inches, a common text width: columns beyond the first five follow
below.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline.errors import LINE, escaped_line
from pipeline.evaluate.results import Named
from pipeline.models.checkpoint import encoder_of
from transforms.intervals import estimate_of

TIMES = "\N{MULTIPLICATION SIGN}"
_FIRST = 60
"""Largest number of characters of a cell in the first column of an aligned table."""
_LISTED = 3
"""Largest number of names in a sentence."""


def listed(names: Sequence[str], most: int = _LISTED) -> str:
    """Lists names; of many, only the first, up to `most`.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Aligns a table's cells, the first column to the left; wraps columns at `LINE` characters."""
    first, *others = zip(*table, strict=True)
    names = [shorten(name, _FIRST) for name in first]
    left = max(map(len, names))
    blocks: list[list[str]] = []
    for column in others:
        width = max(map(len, column))
        cells = [f"  {cell:>{width}}" for cell in column]
        fits = bool(blocks) and len(blocks[-1][0]) + len(cells[0]) <= LINE
        lines = blocks.pop() if fits else [name.ljust(left) for name in names]
        blocks.append([line + cell for line, cell in zip(lines, cells, strict=True)])
    return "\n".join(line.rstrip() for block in blocks for line in block)


def describe_chance(chances: Iterable[float | None]) -> str:
    """Says what constant answers score on sets of pictures tested; "" if none were tested."""
    levels = sorted({f"{100 * chance:.1f}" for chance in chances if chance is not None}, key=float)
    if not levels:
        return ""
    span = levels[0] if len(levels) == 1 else f"{levels[0]} to {levels[-1]}"
    return (
        f"A constant answer gets {span} %, the share of the largest class among the pictures tested"
    )


def interval(value: float, low: float, high: float) -> str:
    """Formats a fraction and its interval in percent, such as `7.1 [-1.6, 16.7]`."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def percent_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Formats a fraction and its interval in percent; a dash if one of them is None."""
    estimate = estimate_of(value, low, high)
    return interval(*estimate) if estimate else "-"


class ShortName(NamedTuple):
    """A model's short name in two fields: its architecture, and what sets the model apart.

    The second field distinguishes it from other models of the same architecture: its weights, its
    source, and settings that are not the default.
    """

    first: str
    rest: str


def names_of(models: Sequence[Named]) -> list[ShortName]:
    """Returns the short names of models, without their files' folders if they are then unique."""
    short = [_name(one, with_folders=False) for one in models]
    return [
        name if short.count(name) == 1 else _name(one, with_folders=True)
        for one, name in zip(models, short, strict=True)
    ]


def _name(named: Named, *, with_folders: bool) -> ShortName:
    model = named.model
    entry = encoder_of(model) or model
    # The head of an encoder is shown like a setting.
    settings = f"{model.removesuffix(entry).rstrip(':')}{named.name.removeprefix(model)}".strip()
    if not named.title.startswith(model):  # It has a label.
        return ShortName(named.title, " ".join(named.evaluation.names))
    kind, colon, name = entry.partition(":")
    if "=" in (kind if colon else entry):
        first, _, rest = entry.partition("=")
        rest = rest if with_folders else rest.rpartition("/")[2]
    elif colon:
        is_file = kind in ("onnx", "answers") and not with_folders
        first, rest = name.rpartition("/")[2] if is_file else name, kind
    else:
        first, _, rest = entry.partition(".")
    return ShortName(first, " ".join(filter(None, (rest, settings))))


def shorten(name: str, length: int = 30) -> str:
    """Cuts the middle out of a name that is too long, because tags at the end tell models apart.

    >>> shorten("vit_base_patch16_clip_224.openai", 12)
    'vit_ba…penai'
    """
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


_SIDE_BY_SIDE = 5
_NAME, _REST, _HEAD = 25, 30, 10
"""Largest number of characters of a model's name, of the line beneath it, and of a word in a column
heading."""

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # Commands such as \\ would take them for an argument.
    **{character: f"{{{character}}}" for character in "[]*"},
}


def escape(text: str) -> str:
    r"""Escapes characters that are special in LaTeX, or not printable.

    >>> escape("efficientnet_lite0 50%")
    'efficientnet\\_lite0 50\\%'
    """
    return "".join(_SPECIAL.get(character, character) for character in escaped_line(text))


class Cell(NamedTuple):
    """An estimate with its interval, as fractions.

    Attributes:
      low, high: ends of the interval; of the range of the seeds if there is no interval, and
        `is_range` then.
      is_bold: whether it cannot be told from the best of its column.
      is_starred: whether it is significant.
      seeds: what it is the mean of, if it is one, and `sd` their standard deviation.
      smallest: the smallest difference that as many images would show, if that is said.
    """

    value: float
    low: float
    high: float
    is_bold: bool = False
    is_starred: bool = False
    is_range: bool = False
    seeds: tuple[float, ...] = ()
    sd: float | None = None
    smallest: float | None = None

    @property
    def drawn(self) -> tuple[float, ...]:
        """All that a figure draws of it."""
        return (self.value, self.low, self.high, *self.seeds)

    def __str__(self) -> str:
        ends = "(range {:.1f} to {:.1f})" if self.is_range else "[{:.1f}, {:.1f}]"
        return f"{100 * self.value:.1f} {ends.format(100 * self.low, 100 * self.high)}"


def tabular(
    description: str,
    heads: Sequence[str],
    names: Sequence[ShortName],
    cells: Sequence[Sequence[Cell | None]],
) -> str:
    """Makes a `tabular` with a line of estimates in percent for each model, and intervals beneath.

    Args:
      description: what the table holds; a comment at its head.
      heads: headings of the columns after the model's name.
      names: the models' names (`names_of`); a model without numbers is named only in a comment.
      cells: for each model, a cell for each column; None is an empty cell. If cells have standard
        deviations, a third line has them.
    """
    shown = [(name, row) for name, row in zip(names, cells, strict=True) if any(row)]
    without = [" ".join(name) for name, row in zip(names, cells, strict=True) if not any(row)]
    width = min(len(heads), _SIDE_BY_SIDE)
    lines = [
        f"% {description}",
        *(
            [f"% No figures in this table, so left out: {escape(', '.join(without))}"]
            if without
            else []
        ),
        rf"\begin{{tabular}}{{@{{}}l*{{{width}}}{{@{{\hspace{{8pt}}}}r}}@{{}}}}",
        r"\toprule",
    ]
    for start in range(0, len(heads), _SIDE_BY_SIDE):
        block = slice(start, start + _SIDE_BY_SIDE)
        lines += [] if start == 0 else [r"\midrule"]
        lines += [_row([*map(_head, ["Model", *heads[block]])], width), r"\midrule"]
        for number, (name, row) in enumerate(shown):
            lines += [r"\addlinespace"] if number else []
            rest = rf"\scriptsize {escape(shorten(name.rest, _REST))}" if name.rest else ""
            lines += [
                _row([escape(shorten(name.first, _NAME)), *map(_number, row[block])], width),
                _row([rest, *map(_interval, row[block])], width),
            ]
            sds = [
                rf"\scriptsize${100 * one.sd:.1f}$" if one and one.sd is not None else ""
                for one in row[block]
            ]
            lines += [_row([r"\scriptsize sd", *sds], width)] if any(sds) else []
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _head(name: str) -> str:
    """Formats a column heading, and stacks its words if they are too long for one line."""
    lines = textwrap.wrap(name.replace("_", "_ "), 8, break_long_words=False)
    words = [escape(shorten(line.replace("_ ", "_"), _HEAD)) for line in lines]
    stacked = rf"\shortstack[r]{{{(chr(92) * 2).join(words)}}}"
    return r"\footnotesize " + (words[0] if len(words) == 1 else stacked)


def _number(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    number = f"{100 * cell.value:.1f}"
    shown = rf"$\mathbf{{{number}}}$" if cell.is_bold else f"${number}$"
    # The star takes no width, so that digits stay below each other.
    return shown + r"\rlap{$^*$}" * cell.is_starred


def _interval(cell: Cell | None) -> str:
    """Formats what stands beneath a number; a range must not look like an interval."""
    ends = "{:.1f}$ to ${:.1f}" if cell and cell.is_range else "[{:.1f}, {:.1f}]"
    return rf"\scriptsize${ends.format(100 * cell.low, 100 * cell.high)}$" if cell else ""


def _row(cells: Sequence[str], width: int) -> str:
    """Joins the cells of a line, and fills the line up with empty cells."""
    return " & ".join([*cells, *[""] * (1 + width - len(cells))]) + r" \\"
