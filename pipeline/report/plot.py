"""A figure of the report, and helpers that its figures share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.report.evidence import ModelResults
from pipeline.report.figures.points import Series
from pipeline.report.figures.style import Drawn
from pipeline.report.measured import grid_size
from pipeline.report.verdicts import Estimate


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
      panel: name of the group of figures on the page that it belongs to.
      file: name of its SVG file in `figure_files.FOLDER`.
      alt: description for readers who cannot see it.
      drawn: the figure itself.
      model: name of the model that it shows; "" if it shows several.
    """

    panel: str
    file: str
    alt: str
    drawn: Drawn
    model: str = ""


def point(row: dict[str, Any] | None) -> Estimate | None:
    """Returns the accuracy of a row of results with its interval; None without a row or images."""
    return (row["accuracy"], row["ci_low"], row["ci_high"]) if row and row["n"] else None


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


def titles(models: Sequence[ModelResults]) -> Callable[[ModelResults], str]:
    """Returns a function that names attacked models, with the size of their grid if sizes
    differ."""
    sizes = {grid_size(model.attack or {}) for model in models}
    if len(sizes) == 1:
        return lambda model: model.name
    return lambda model: f"{model.name}, {grid_size(model.attack or {})}"
