r"""LaTeX tables for papers: booktabs, percent, intervals beneath their estimates.

A document needs `\usepackage{booktabs}`, and includes a table with `\input{headline.tex}`. At a
font size of 10 points, no table is wider than 5.5 inches, a common text width: columns beyond the
first five follow below.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import escaped_line
from pipeline.report.short_names import ShortName, names_of, shorten
from transforms.analysis import KINDS
from transforms.intervals import CONFIDENCE
from transforms.scoring import LABEL_RULES

PAPER_NAMES = {
    "original": "Original",
    "only_bg_b": "Only-BG-B",
    "only_bg_t": "Only-BG-T",
    "no_fg": "No-FG",
    "only_fg": "Only-FG",
    "mixed_same": "Mixed-Same",
    "mixed_rand": "Mixed-Rand",
    "mixed_next": "Mixed-Next",
}
"""The paper's names of the variants."""

GAP = "bg_gap"
HEADLINE = ("original", "only_bg_t", "mixed_same", "mixed_rand", GAP)
"""Default columns of the headline table."""

_SIDE_BY_SIDE = 5
_NAME, _REST, _HEAD = 25, 30, 10
"""Largest number of characters of a model's name, of the line beneath it, and of a word in a column
heading."""

KIND_NAMES = {
    "bg_required": "BG required",
    "bg_fools": "BG fools",
    "bg_fg_required": "BG+FG required",
    "bg_fg_fools": "BG+FG fools",
    "right_on_both": "Right on both",
    "wrong_on_both": "Wrong on both",
}
"""Name of each kind of image, in the order of `KINDS`. The first four are the paper's; its "BG
irrelevant" is the last two together."""

_BY_CLASS = ("original", "mixed_same", "mixed_rand")

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


def latex_tables(
    summaries: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    columns: Sequence[str] = HEADLINE,
) -> dict[str, str]:
    """Makes all tables.

    Args:
      summaries: summaries of the models.
      class_names: names of the dataset's classes.
      columns: columns of the headline table: variants and `bg_gap`.

    Returns:
      LaTeX source by file name without `.tex`: `headline`, `decomposition` and
      `per_class_<variant>` under the paper's label rule, and `headline_<rule>` under each other
      rule.
    """
    paper, *others = LABEL_RULES
    tables = {"headline": headline(summaries, paper, columns)}
    tables |= {f"headline_{rule}": headline(summaries, rule, columns) for rule in others}
    tables["decomposition"] = decomposition(summaries, paper)
    for variant in _BY_CLASS:
        tables[f"per_class_{variant}"] = per_class(summaries, paper, variant, class_names)
    return tables


def headline(summaries: Sequence[Mapping[str, Any]], rule: str, columns: Sequence[str]) -> str:
    """Makes a `tabular` of models x variants and BG-Gap, in percent with 95 % intervals.

    Args:
      summaries: summaries of the models.
      rule: the label rule.
      columns: variants and `bg_gap`, in order; columns that no model has are left out.

    Returns:
      LaTeX source. Figures of mixed variants and BG-Gap are means over their draws.
    """
    rows_of_models = []
    for summary in summaries:
        rows = {name: (row, "accuracy") for name, row in _by(summary, "accuracy", rule, "variant")}
        gaps = [(row, "gap") for _, row in _by(summary, "gaps", rule, "label_rule")]
        rows_of_models.append({**rows, **dict.fromkeys([GAP], *gaps)} if gaps else rows)
    shown = [name for name in columns if any(name in rows for rows in rows_of_models)]
    return _tabular(
        f"Accuracy and BG-Gap in %, 95 % intervals; label rule: {rule}",
        ["BG-Gap" if name == GAP else PAPER_NAMES.get(name, name) for name in shown],
        summaries,
        [[rows.get(name) for name in shown] for rows in rows_of_models],
    )


def decomposition(summaries: Sequence[Mapping[str, Any]], rule: str) -> str:
    """Makes a table of models x kinds of images, in percent; arguments as for `headline`."""
    rows_of_models = [
        dict(_by(summary, "decomposition", rule, "kind", "images")) for summary in summaries
    ]
    return _tabular(
        f"Share of images in %, 95 % intervals; label rule: {rule}; mixed_rand: its first draw; "
        "the paper's BG irrelevant is: right or wrong on both, Original and Mixed-Rand",
        [KIND_NAMES[kind] for kind in KINDS],
        summaries,
        [[_cell(rows.get(kind), "share") for kind in KINDS] for rows in rows_of_models],
    )


def per_class(
    summaries: Sequence[Mapping[str, Any]], rule: str, variant: str, class_names: Sequence[str]
) -> str:
    """Makes a table of models x classes on one variant, in percent; other arguments as for
    `headline`.

    A bold number marks a class on which a model is significantly better or worse than on the other
    classes (`class_p_values`).
    """
    rows_of_models = [
        {
            row["class_name"]: row
            for row in summary.get("per_class", ())
            if row["label_rule"] == rule and row["variant"] == variant
        }
        for summary in summaries
    ]
    return _tabular(
        f"Accuracy on {variant} in %, 95 % intervals; label rule: {rule}; bold: differs from the "
        "other classes (Benjamini-Hochberg, 5 %)",
        class_names,
        summaries,
        [[_cell(rows.get(name), "accuracy") for name in class_names] for rows in rows_of_models],
    )


_Cell = tuple[Mapping[str, Any], str]
"""A row of results, and the name of its column that holds the estimate."""


def _tabular(
    description: str,
    heads: Sequence[str],
    summaries: Sequence[Mapping[str, Any]],
    cells: Sequence[Sequence[_Cell | None]],
) -> str:
    """Makes a `tabular` with a line of estimates for each model, and a line of their intervals
    beneath.

    A model without numbers is named only in a comment.
    """
    names = names_of(summaries)
    models = [(name, row) for name, row in zip(names, cells, strict=True) if any(row)]
    without = [" ".join(name) for name, row in zip(names, cells, strict=True) if not any(row)]
    width = min(len(heads), _SIDE_BY_SIDE)
    lines = [
        f"% {description}",
        *([f"% Without results, so left out: {escape(', '.join(without))}"] if without else []),
        rf"\begin{{tabular}}{{@{{}}l*{{{width}}}{{@{{\hspace{{8pt}}}}r}}@{{}}}}",
        r"\toprule",
    ]
    for start in range(0, len(heads), _SIDE_BY_SIDE):
        block = slice(start, start + _SIDE_BY_SIDE)
        lines += [] if start == 0 else [r"\midrule"]
        lines += [_row([*map(_head, ["Model", *heads[block]])], width), r"\midrule"]
        for number, (name, row) in enumerate(models):
            lines += [r"\addlinespace"] if number else []
            lines += _of_model(name, row[block], width)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _of_model(name: ShortName, row: Sequence[_Cell | None], width: int) -> list[str]:
    """Formats the two lines of a model: estimates, and intervals beneath."""
    rest = rf"\scriptsize {escape(shorten(name.rest, _REST))}" if name.rest else ""
    return [
        _row([escape(shorten(name.first, _NAME)), *map(_number, row)], width),
        _row([rest, *map(_interval, row)], width),
    ]


def _head(name: str) -> str:
    """Formats a column heading, and stacks its words if they are too long for one line."""
    lines = textwrap.wrap(name.replace("_", "_ "), 8, break_long_words=False)
    words = [escape(shorten(line.replace("_ ", "_"), _HEAD)) for line in lines]
    stacked = rf"\shortstack[r]{{{(chr(92) * 2).join(words)}}}"
    return r"\footnotesize " + (words[0] if len(words) == 1 else stacked)


def _by(
    summary: Mapping[str, Any], part: str, rule: str, column: str, total: str = "n"
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (value of a column, row) of a part of a summary; leaves out rows without images."""
    for row in summary.get(part, ()):
        if row["label_rule"] == rule and row[total]:
            yield row[column], row


def _cell(row: Mapping[str, Any] | None, column: str) -> _Cell | None:
    return None if row is None else (row, column)


def _number(cell: _Cell | None) -> str:
    """Formats the estimate, in bold if the row's adjusted p value is significant."""
    if cell is None:
        return "--"
    row, column = cell
    number = f"{100 * row[column]:.1f}"
    p = row.get("p_adjusted")
    return rf"$\mathbf{{{number}}}$" if p is not None and p < 1 - CONFIDENCE else f"${number}$"


def _interval(cell: _Cell | None) -> str:
    if cell is None:
        return ""
    low, high = (f"{100 * cell[0][name]:.1f}" for name in ("ci_low", "ci_high"))
    return rf"\scriptsize$[{low}, {high}]$"


def _row(cells: Sequence[str], width: int) -> str:
    """Joins the cells of a line, and fills the line up with empty cells."""
    return " & ".join([*cells, *[""] * (1 + width - len(cells))]) + r" \\"
