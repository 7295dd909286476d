"""A figure of the report, and what its figures share.

If there are many classes, figures show only the worst, because a figure of a thousand rows is
unreadable. The CSV files list all classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from pipeline.display.points import Series
from pipeline.display.style import MODELS, Drawn
from pipeline.display.verdicts import Estimate
from transforms.taxonomy import Taxonomy

COMPARED = len(MODELS)
"""Largest number of models that a figure compares: the models with the highest accuracy on
`original`."""
MOST_ROWS = 24
MOST_CELLS = 9
"""Largest number of classes that a figure shows: `MOST_ROWS` if classes are only its rows,
`MOST_CELLS` if they are its rows and its columns."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
      panel: name of the group of figures on the page that it belongs to.
      file: name of its SVG file in the folder of figures.
      alt: description for readers who cannot see it.
      drawn: the figure itself.
      model: name of the model that it shows; "" if it shows several.
    """

    panel: str
    file: str
    alt: str
    drawn: Drawn
    model: str = ""


class _Measured(Protocol):
    @property
    def n(self) -> int: ...
    @property
    def accuracy(self) -> float | None: ...
    @property
    def ci_low(self) -> float: ...
    @property
    def ci_high(self) -> float: ...


def point(row: _Measured | None) -> Estimate | None:
    """Returns the accuracy of a row of results with its interval; None without a row or images."""
    if row is None or not row.n or row.accuracy is None:
        return None
    return row.accuracy, row.ci_low, row.ci_high


def spoken(series: Sequence[Series], labels: Sequence[str]) -> str:
    """Spells out the values of a figure, in percent, for readers who cannot see it."""
    return "; ".join(
        f"{one.name}: "
        + ", ".join(
            f"{label} {100 * value[0]:.0f} %"
            for label, value in zip(labels, one.values, strict=True)
            if value
        )
        for one in series
    )


def worst_classes(scores: Mapping[int, float], count: int, most: int) -> list[int]:
    """Selects the labels that a figure shows, and returns them in ascending order.

    Args:
      scores: scores by label. Labels with the lowest scores are selected first, labels without a
        score last.
      count: number of classes.
      most: number of labels that the figure has room for.

    >>> worst_classes({0: 0.9, 1: 0.2, 2: 0.5}, 4, 2)
    [1, 2]
    """
    order = sorted(range(count), key=lambda label: (scores.get(label, 2.0), label))
    return sorted(order[:most])


def of_all(shown: Sequence[int], taxonomy: Taxonomy) -> str:
    """Returns the note for the title that classes are left out; "" if all classes are shown."""
    if len(shown) == taxonomy.num_labels:
        return ""
    return f" (worst {len(shown)} of {taxonomy.num_labels})"
