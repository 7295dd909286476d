r"""Tables as LaTeX, for papers: booktabs, percent, intervals beneath their estimates.

A document needs `\usepackage{booktabs}`; it takes a table in with `\input{headline.tex}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.evaluate.results import display_name
from transforms.analysis import KINDS
from transforms.intervals import CONFIDENCE
from transforms.scoring import LABEL_RULES
from transforms.variants import PICTURES

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
    summaries: Sequence[Mapping[str, Any]], class_names: Sequence[str]
) -> dict[str, str]:
    """The tables, by name of their file without `.tex`: `headline` by the paper's label rule
    and `headline_<rule>` by each other one; `decomposition` and `per_class_<variant>` by the
    paper's."""
    paper, *others = LABEL_RULES
    tables = {"headline": headline(summaries, paper)}
    tables |= {f"headline_{rule}": headline(summaries, rule) for rule in others}
    tables["decomposition"] = decomposition(summaries, paper)
    for variant in _BY_CLASS:
        tables[f"per_class_{variant}"] = per_class(summaries, paper, variant, class_names)
    return tables


def headline(summaries: Sequence[Mapping[str, Any]], rule: str) -> str:
    """Models x variants in percent with 95 % intervals, and BG-Gap, as a `tabular`.

    Args:
      summaries: of models; a model that failed, or has no such number, gets dashes.
      rule: the label rule.

    Returns:
      LaTeX. Mixed variants and BG-Gap are means over their draws.
    """
    accuracy = [_by(summary, "accuracy", rule, "variant") for summary in summaries]
    there = dict.fromkeys(name for rows in accuracy for name in rows)
    variants = [name for name in PICTURES if name in there]
    variants += [name for name in there if name not in PICTURES]
    gaps = [_by(summary, "gaps", rule, "label_rule").get(rule) for summary in summaries]
    return _tabular(
        f"Accuracy and BG-Gap in %, 95 % intervals; label rule: {rule}",
        [*(PAPER_NAMES.get(name, escape(name)) for name in variants), "BG-Gap"],
        summaries,
        [
            [*((rows.get(name), "accuracy") for name in variants), (gap, "gap")]
            for rows, gap in zip(accuracy, gaps, strict=True)
        ],
    )


def decomposition(summaries: Sequence[Mapping[str, Any]], rule: str) -> str:
    """Models x kinds of images, in percent; arguments as `headline`."""
    found = [_by(summary, "decomposition", rule, "kind", "images") for summary in summaries]
    return _tabular(
        f"Share of images in %, 95 % intervals; label rule: {rule}; mixed_rand: its first draw",
        [_KIND_NAMES[kind] for kind in KINDS],
        summaries,
        [[(rows.get(kind), "share") for kind in KINDS] for rows in found],
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
        [escape(name) for name in class_names],
        summaries,
        [[(rows.get(name), "accuracy") for name in class_names] for rows in found],
    )


def _tabular(
    about: str,
    header: Sequence[str],
    summaries: Sequence[Mapping[str, Any]],
    cells: Sequence[Sequence[tuple[Mapping[str, Any] | None, str]]],
) -> str:
    """A row of numbers for each model, given as (row of a table, its column), with a row of
    their intervals beneath."""
    lines = [
        f"% {about}",
        rf"\begin{{tabular}}{{l{'r' * len(header)}}}",
        r"\toprule",
        _row(["Model", *header]),
        r"\midrule",
    ]
    for summary, numbers in zip(summaries, cells, strict=True):
        lines.append(
            _row([escape(display_name(summary)), *(_number(row, name) for row, name in numbers)])
        )
        intervals = [_interval(row) for row, _ in numbers]
        if any(intervals):
            lines.append(_row(["", *intervals]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _by(
    summary: Mapping[str, Any], part: str, rule: str, column: str, total: str = "n"
) -> dict[str, Any]:
    """Rows of a part by the value of a column; those of no images are left out."""
    rows = (row for row in summary.get(part, ()) if row["label_rule"] == rule and row[total])
    return {row[column]: row for row in rows}


def _number(row: Mapping[str, Any] | None, column: str) -> str:
    """Bold if the row has a test, and it stands out among all."""
    if row is None:
        return "--"
    number = f"{100 * row[column]:.1f}"
    p = row.get("p_adjusted")
    return rf"$\mathbf{{{number}}}$" if p is not None and p < 1 - CONFIDENCE else f"${number}$"


def _interval(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    return rf"\scriptsize$[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]$"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
