"""What the page says of differences: between any two models, and from the baseline."""

import dataclasses
from collections.abc import Iterable, Sequence

from pipeline.analyses.evaluation.baseline import BASELINE, BaselineRow
from pipeline.display.panel import COMPARED
from pipeline.display.table import Cell
from pipeline.evaluate.comparisons import COMPARISONS, GAP, ComparisonRow, read_rows
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.subjects import column_of

_DIFFERING = 3
"""Up to this number of differing pairs, the summary lists each pair's differences; if there
are more, it only counts them."""


@dataclasses.dataclass(frozen=True)
class Differences:
    """A table of pairs of models, as (first, second, cells by column).

    `of` says what the pairs are of, in words.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, dict[str, Cell]], ...]
    left_out: bool
    of: str = "models"

    @property
    def of_gaps(self) -> str:
        """How the BG-Gap of the first models differs from that of the second, in a line."""
        gaps = [cells[GAP] for *_, cells in self.rows if GAP in cells]
        if len(gaps) == 1:
            value, low, high = (100 * bound for bound in gaps[0][:3])
            return f"{value:+.1f} points, {low:.1f} to {high:.1f}"
        larger, smaller = (
            sum(cell.is_starred and (cell.value > 0) is is_larger for cell in gaps)
            for is_larger in (True, False)
        )
        return f"significantly larger for {larger}, smaller for {smaller} of {len(gaps)} {self.of}"

    @property
    def summary(self) -> str:
        """The pairs and columns that differ significantly, in words, and what that allows for.

        It allows for the pairs of models in a column, but not for the columns beside it.
        """
        pairs = [
            (first, second, {name: cell.value for name, cell in cells.items() if cell.is_starred})
            for first, second, cells in self.rows
        ]
        differing = [pair for pair in pairs if pair[2]]
        if not differing:
            return "None of these differences is significant."
        scope = "Columns are not adjusted for each other: expect 1 in 20 by chance."
        if len(differing) <= _DIFFERING:
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
            f"{len(differing)} of {len(pairs)} pairs of {self.of} differ significantly, on: "
            f"{listed}. {scope}"
        )


def _in_words(column: str, difference: float) -> str:
    points = f"{abs(100 * difference):.1f} points"
    if column.startswith(GAP):
        return f"a {column} {points} {'larger' if difference > 0 else 'smaller'}"
    # Not "better" or "worse": on variants without the object, nothing is there to recognise.
    return f"{points} {'higher' if difference > 0 else 'lower'} on {column}"


def kinds_of(are_families: Iterable[bool], joined: str = "and") -> str:
    """Names what there is: models, families, or both, joined by a word."""
    kinds = {"families" if is_family else "models" for is_family in are_families}
    return f" {joined} ".join(sorted(kinds))


def read_differences(evidence: Evidence, variants: Sequence[str]) -> Differences:
    """Reads how any two of the first `COMPARED` families, or models in none, differ.

    There are no rows if the file is missing.
    """
    compared = evidence.subjects[:COMPARED]
    names = {one.name: name for name, one in compared}
    headlines = {(one.name, one.headline) for _, one in compared}
    rows = [
        (names[row.first], names[row.second], row)
        for row in read_rows(evidence.dataset, COMPARISONS, ComparisonRow)
        if {(row.first, row.label_rule), (row.second, row.label_rule)} <= headlines
    ]
    return _by_pair(evidence, variants, rows, len(evidence.subjects) > COMPARED)


def read_baseline(evidence: Evidence, variants: Sequence[str]) -> Differences:
    """Reads the differences of all families and models from the baseline; no rows without one."""
    names = {one.name: name for name, one in evidence.subjects}
    rows = [
        (names.get(row.model, row.model), row.baseline, row)
        for row in read_rows(evidence.dataset, BASELINE, BaselineRow)
    ]
    return _by_pair(evidence, variants, rows, left_out=False)


def _by_pair(
    evidence: Evidence,
    variants: Sequence[str],
    rows: Iterable[tuple[str, str, ComparisonRow | BaselineRow]],
    left_out: bool,
) -> Differences:
    """Sorts (first, second, their difference) by pairs, in order of families and models."""
    order = {name: position for position, (name, _) in enumerate(evidence.subjects)}
    pairs: dict[tuple[str, str], dict[str, Cell]] = {}
    # A baseline of another folder has no place in this order.
    for first, second, row in sorted(rows, key=lambda row: [order.get(one, 0) for one in row[:2]]):
        if (column := column_of(row.variant)) in (GAP, *variants):
            pairs.setdefault((first, second), {})[column] = Cell(
                *(row.difference, row.ci_low, row.ci_high),
                is_starred=row.is_significant,
                smallest=row.smallest_difference
                if isinstance(row, BaselineRow) and column == GAP
                else None,
            )
    families = {name for name, one in evidence.subjects if one.is_family}
    of = kinds_of((first in families for first, _ in pairs), "or")
    ordered = tuple((*pair, cells) for pair, cells in pairs.items())
    return Differences((GAP, *variants), ordered, left_out, of)
