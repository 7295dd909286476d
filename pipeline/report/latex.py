r"""Tables as LaTeX, for papers: booktabs, percent, intervals beneath their estimates.

A document needs `\usepackage{booktabs}`; it takes a table in with `\input{headline.tex}`. None is
wider than 5.5 inches at 10 points, a common width of text: five columns stand side by side, and
more of them follow beneath.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
"""Columns of the headline table, where no others are chosen."""

_SIDE_BY_SIDE = 5
_NAME, _REST, _HEAD = 25, 30, 10
"""Most characters of a model's name, of what stands beneath it, and of a word above a column."""

_KIND_NAMES = {
    "bg_required": "BG required",
    "bg_fools": "BG fools",
    "bg_fg_required": "BG+FG required",
    "bg_fg_fools": "BG+FG fools",
    "bg_irrelevant": "BG irrelevant",
}
_BY_CLASS = ("original", "mixed_same", "mixed_rand")

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    r"""Text as LaTeX prints it.

    >>> escape("efficientnet_lite0 50%")
    'efficientnet\\_lite0 50\\%'
    """
    return "".join(_SPECIAL.get(character, character) for character in text)


def latex_tables(
    summaries: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    columns: Sequence[str] = HEADLINE,
) -> dict[str, str]:
    """The tables, by name of their file without `.tex`: `headline` by the paper's label rule
    and `headline_<rule>` by each other one; `decomposition` and `per_class_<variant>` by the
    paper's. `columns` are of the headline: variants and `bg_gap`."""
    paper, *others = LABEL_RULES
    tables = {"headline": headline(summaries, paper, columns)}
    tables |= {f"headline_{rule}": headline(summaries, rule, columns) for rule in others}
    tables["decomposition"] = decomposition(summaries, paper)
    for variant in _BY_CLASS:
        tables[f"per_class_{variant}"] = per_class(summaries, paper, variant, class_names)
    return tables


def headline(summaries: Sequence[Mapping[str, Any]], rule: str, columns: Sequence[str]) -> str:
    """Models x variants in percent with 95 % intervals, and BG-Gap, as a `tabular`.

    Args:
      summaries: of models.
      rule: the label rule.
      columns: variants and `bg_gap`, in order; what no model has is left out.

    Returns:
      LaTeX. Mixed variants and BG-Gap are means over their draws.
    """
    found = []
    for summary in summaries:
        rows = {name: (row, "accuracy") for name, row in _by(summary, "accuracy", rule, "variant")}
        gaps = [(row, "gap") for _, row in _by(summary, "gaps", rule, "label_rule")]
        found.append({**rows, **dict.fromkeys([GAP], *gaps)} if gaps else rows)
    there = [name for name in columns if any(name in rows for rows in found)]
    return _tabular(
        f"Accuracy and BG-Gap in %, 95 % intervals; label rule: {rule}",
        ["BG-Gap" if name == GAP else PAPER_NAMES.get(name, name) for name in there],
        summaries,
        [[rows.get(name) for name in there] for rows in found],
    )


def decomposition(summaries: Sequence[Mapping[str, Any]], rule: str) -> str:
    """Models x kinds of images, in percent; arguments as `headline`."""
    found = [dict(_by(summary, "decomposition", rule, "kind", "images")) for summary in summaries]
    return _tabular(
        f"Share of images in %, 95 % intervals; label rule: {rule}; mixed_rand: its first draw",
        [_KIND_NAMES[kind] for kind in KINDS],
        summaries,
        [[_cell(rows.get(kind), "share") for kind in KINDS] for rows in found],
    )


def per_class(
    summaries: Sequence[Mapping[str, Any]], rule: str, variant: str, class_names: Sequence[str]
) -> str:
    """Models x classes on one variant, in percent; other arguments as `headline`. Bold is a class
    on which a model is better or worse than on the others (`class_p_values`)."""
    found = [
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
        [[_cell(rows.get(name), "accuracy") for name in class_names] for rows in found],
    )


_Cell = tuple[Mapping[str, Any], str]
"""A row of a table, and the column that holds the estimate."""


def _tabular(
    description: str,
    heads: Sequence[str],
    summaries: Sequence[Mapping[str, Any]],
    cells: Sequence[Sequence[_Cell | None]],
) -> str:
    """A row of numbers for each model, with a row of their intervals beneath. A model without a
    single number is named in a comment alone."""
    names = names_of(summaries)
    models = [(name, row) for name, row in zip(names, cells, strict=True) if any(row)]
    without = [" ".join(name) for name, row in zip(names, cells, strict=True) if not any(row)]
    width = min(len(heads), _SIDE_BY_SIDE)
    lines = [
        f"% {description}",
        *([f"% Without results, so left out: {', '.join(without)}"] if without else []),
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
    """The two lines of a model."""
    rest = rf"\scriptsize {escape(shorten(name.rest, _REST))}" if name.rest else ""
    return [
        _row([escape(shorten(name.first, _NAME)), *map(_number, row)], width),
        _row([rest, *map(_interval, row)], width),
    ]


def _head(name: str) -> str:
    """What stands above a column: its words beneath each other, unless they are short."""
    lines = textwrap.wrap(name.replace("_", "_ "), 8, break_long_words=False)
    words = [escape(shorten(line.replace("_ ", "_"), _HEAD)) for line in lines]
    stacked = rf"\shortstack[r]{{{(chr(92) * 2).join(words)}}}"
    return r"\footnotesize " + (words[0] if len(words) == 1 else stacked)


def _by(
    summary: Mapping[str, Any], part: str, rule: str, column: str, total: str = "n"
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a part, each behind the value of a column; those of no images are left out."""
    for row in summary.get(part, ()):
        if row["label_rule"] == rule and row[total]:
            yield row[column], row


def _cell(row: Mapping[str, Any] | None, column: str) -> _Cell | None:
    return None if row is None else (row, column)


def _number(cell: _Cell | None) -> str:
    """Bold if the row has a test, and it stands out among all."""
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
    """Cells of a line, and empty ones up to as many columns."""
    return " & ".join([*cells, *[""] * (1 + width - len(cells))]) + r" \\"
