"""Differences between models on the same images, from results/comparisons.csv."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.analyses.evaluation.comparisons import read_comparisons
from pipeline.analyses.evaluation.contributions import BG_GAP
from pipeline.analyses.evaluation.headline import GAP
from pipeline.analyses.evaluation.results import Summary
from pipeline.display.evidence import Evidence
from pipeline.display.plot import COMPARED
from transforms.intervals import CONFIDENCE

_NAMED = 3
"""Up to this number of differing pairs, the summary lists each pair's differences; if there
are more, it only counts them."""

Cell = tuple[float, float, float, bool]
"""A difference, the bounds of its interval, and whether it is significant."""


@dataclasses.dataclass(frozen=True)
class Differences:
    """A table of pairs of models.

    Attributes:
      columns: BG-Gap, then variants.
      rows: (first, second, cells by column).
      left_out: whether some models are left out because the table compares only the best.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, dict[str, Cell]], ...]
    left_out: bool

    @property
    def summary(self) -> str:
        """The pairs and columns that differ significantly, in words, and what that allows for: the
        pairs of models in a column, but not the columns beside it."""
        pairs = [(first, second, _significant(cells)) for first, second, cells in self.rows]
        differing = [pair for pair in pairs if pair[2]]
        if not differing:
            them = "these two models" if len(pairs) == 1 else "any two of these models"
            return f"No difference between {them} is larger than chance would explain."
        scope = (
            f"Each of the {len(self.columns)} columns is tested by itself: where nothing differs, "
            "chance alone makes one column in twenty seem to."
        )
        if len(differing) <= _NAMED:
            parts = [
                f"{first} against {second}: "
                + ", ".join(_in_words(*one) for one in columns.items())
                for first, second, columns in differing
            ]
            return f"{'; '.join(parts)}. No other difference is significant. {scope}"
        counts = {
            column: sum(column in columns for *_, columns in differing) for column in self.columns
        }
        listed = ", ".join(f"{column} ({n})" for column, n in counts.items() if n)
        return (
            f"{len(differing)} of {len(pairs)} pairs of models differ significantly, on: {listed}. "
            f"{scope}"
        )


def _in_words(column: str, difference: float) -> str:
    points = f"{abs(100 * difference):.1f} points"
    if column == GAP:
        return f"a BG-Gap {points} {'larger' if difference > 0 else 'smaller'}"
    # Not "better" or "worse": on variants without the object, nothing is there to recognise.
    return f"{points} {'higher' if difference > 0 else 'lower'} on {column}"


def _significant(cells: dict[str, Cell]) -> dict[str, float]:
    """Returns the significant differences, by column."""
    return {column: cell[0] for column, cell in cells.items() if cell[3]}


def read_differences(evidence: Evidence, variants: Sequence[str]) -> Differences:
    """Reads the differences between each two of the `COMPARED` best models; no rows if the file is
    missing."""
    store, columns = evidence.dataset.store, (GAP, *variants)
    evaluated = evidence.models_with(Summary)
    models = [model for model, _ in evaluated[:COMPARED]]
    names = {summary.name: model.name for model, summary in evaluated[:COMPARED]}
    headlines = {(summary.name, summary.headline) for _, summary in evaluated[:COMPARED]}
    pairs: dict[tuple[str, str], dict[str, Cell]] = {}
    for row in read_comparisons(store):
        is_ours = row.dataset == evidence.dataset.manifest.fingerprint
        column = GAP if row.variant == BG_GAP else row.variant
        is_headline = {(row.first, row.label_rule), (row.second, row.label_rule)} <= headlines
        if is_ours and is_headline and column in columns:
            cell = row.difference, row.ci_low, row.ci_high, row.p_adjusted < 1 - CONFIDENCE
            pairs.setdefault((names[row.first], names[row.second]), {})[column] = cell
    order = {model.name: index for index, model in enumerate(models)}
    rows = sorted(pairs.items(), key=lambda pair: (order[pair[0][0]], order[pair[0][1]]))
    return Differences(
        columns=columns,
        rows=tuple((first, second, cells) for (first, second), cells in rows),
        left_out=len(evaluated) > COMPARED,
    )
