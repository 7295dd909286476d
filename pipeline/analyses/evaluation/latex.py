"""LaTeX tables of accuracies; see `pipeline.display.table`."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.analyses.evaluation.results import Summary, rules_of
from pipeline.display.table import Cell, tabular
from transforms.analysis import KINDS
from transforms.intervals import CONFIDENCE
from transforms.variants import PAPER_NAMES

GAP = "bg_gap"
HEADLINE = ("original", "only_bg_t", "mixed_same", "mixed_rand", GAP)
"""Default columns of the headline table."""

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


def latex_tables(
    summaries: Sequence[Summary],
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
      `per_class_<variant>` under the first label rule, and `headline_<rule>` under each other rule.
    """
    first, *others = rules_of(summaries)
    tables = {"headline": headline(summaries, first, columns)}
    tables |= {f"headline_{rule}": headline(summaries, rule, columns) for rule in others}
    tables["decomposition"] = decomposition(summaries, first)
    for variant in _BY_CLASS:
        tables[f"per_class_{variant}"] = per_class(summaries, first, variant, class_names)
    return tables


def headline(summaries: Sequence[Summary], rule: str, columns: Sequence[str]) -> str:
    """Makes a `tabular` of models x variants and BG-Gap, in percent with 95 % intervals.

    Args:
      summaries: summaries of the models.
      rule: the label rule.
      columns: variants and `bg_gap`, in order; columns that no model has are left out.

    Returns:
      LaTeX source. Figures of mixed variants and BG-Gap are means over their draws.
    """
    rows_of_models = [
        {
            **{
                row.variant: Cell(*row.estimate)
                for row in summary.by_rule(summary.accuracy, rule)
                if row.estimate
            },
            **({GAP: Cell(*gap.estimate)} if (gap := summary.gap(rule)) else {}),
        }
        for summary in summaries
    ]
    shown = [name for name in columns if any(name in rows for rows in rows_of_models)]
    return tabular(
        f"Accuracy and BG-Gap in %, 95 % intervals; label rule: {rule}",
        ["BG-Gap" if name == GAP else PAPER_NAMES.get(name, name) for name in shown],
        summaries,
        [[rows.get(name) for name in shown] for rows in rows_of_models],
    )


def decomposition(summaries: Sequence[Summary], rule: str) -> str:
    """Makes a table of models x kinds of images, in percent; arguments as for `headline`."""
    rows_of_models = [
        {
            row.kind: Cell(row.share, row.ci_low, row.ci_high)
            for row in summary.by_rule(summary.decomposition, rule)
            if row.images
        }
        for summary in summaries
    ]
    return tabular(
        f"Share of images in %, 95 % intervals; label rule: {rule}; mixed_rand: its first draw; "
        "the paper's BG irrelevant is: right or wrong on both, Original and Mixed-Rand",
        [KIND_NAMES[kind] for kind in KINDS],
        summaries,
        [[rows.get(kind) for kind in KINDS] for rows in rows_of_models],
    )


def per_class(
    summaries: Sequence[Summary], rule: str, variant: str, class_names: Sequence[str]
) -> str:
    """Makes a table of models x classes on one variant, in percent; other arguments as for
    `headline`.

    A bold number marks a class on which a model is significantly better or worse than on the other
    classes (`class_p_values`).
    """
    rows_of_models = [
        {
            row.class_name: Cell(
                row.accuracy,
                row.ci_low,
                row.ci_high,
                is_bold=row.p_adjusted is not None and row.p_adjusted < 1 - CONFIDENCE,
            )
            for row in summary.by_rule(summary.per_class, rule)
            if row.variant == variant
        }
        for summary in summaries
    ]
    return tabular(
        f"Accuracy on {variant} in %, 95 % intervals; label rule: {rule}; bold: differs from the "
        "other classes (Benjamini-Hochberg, 5 %)",
        class_names,
        summaries,
        [[rows.get(name) for name in class_names] for rows in rows_of_models],
    )
