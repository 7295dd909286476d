r"""Tables as LaTeX, for papers: booktabs, percent, intervals beneath their estimates.

A document needs `\usepackage{booktabs}`; it takes a table in with `\input{headline.tex}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.results import display_name
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


def latex_tables(summaries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The tables, by name of their file without `.tex`: `headline`, by the paper's label
    rule, and `headline_<rule>` by each other one."""
    paper, *others = LABEL_RULES
    tables = {"headline": headline(summaries, paper)}
    return tables | {f"headline_{rule}": headline(summaries, rule) for rule in others}


def headline(summaries: Sequence[Mapping[str, Any]], rule: str) -> str:
    """Models x variants in percent with 95 % intervals, and BG-Gap, as a `tabular`.

    Args:
      summaries: of models; a model that failed, or has no such number, gets dashes.
      rule: the label rule.

    Returns:
      LaTeX. Of a mixed variant's replicates the first is shown; BG-Gap is over all of them.
    """
    accuracy = [_by(summary, "accuracy", rule, "variant") for summary in summaries]
    variants = [name for name in PICTURES if any(name in rows for rows in accuracy)]
    lines = [
        f"% Accuracy and BG-Gap in %, 95 % intervals; label rule: {rule}",
        rf"\begin{{tabular}}{{l{'r' * (len(variants) + 1)}}}",
        r"\toprule",
        _row(["Model", *(PAPER_NAMES[name] for name in variants), "BG-Gap"]),
        r"\midrule",
    ]
    for summary, rows in zip(summaries, accuracy, strict=True):
        gaps = [row for row in summary.get("gaps", ()) if row["label_rule"] == rule]
        cells = [
            *(_number(rows.get(name), "accuracy") for name in variants),
            _number(gaps[0] if gaps else None, "gap"),
        ]
        intervals = [
            *(_interval(rows.get(name)) for name in variants),
            _interval(gaps[0] if gaps else None),
        ]
        lines.append(_row([escape(display_name(summary)), *cells]))
        if any(intervals):
            lines.append(_row(["", *intervals]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _by(summary: Mapping[str, Any], part: str, rule: str, column: str) -> dict[str, Any]:
    return {
        row[column]: row for row in summary.get(part, ()) if row["label_rule"] == rule and row["n"]
    }


def _number(row: Mapping[str, Any] | None, column: str) -> str:
    return "--" if row is None else f"${100 * row[column]:.1f}$"


def _interval(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    return rf"\scriptsize$[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]$"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
