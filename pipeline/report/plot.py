"""A figure of the report, and what its figures share."""

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
      panel: where on the page it belongs.
      file: its SVG file below `FOLDER`.
      alt: what it shows, for those who cannot see it.
      drawn: the figure itself.
      model: name of its model, "" if it is of several.
    """

    panel: str
    file: str
    alt: str
    drawn: Drawn
    model: str = ""


def point(row: dict[str, Any] | None) -> Estimate | None:
    """Accuracy of a row of results, None where nothing was counted."""
    return (row["accuracy"], row["ci_low"], row["ci_high"]) if row and row["n"] else None


def spoken(series: Sequence[Series], places: Sequence[str]) -> str:
    """Values as text, for those who cannot see the figure."""
    return "; ".join(
        f"{one.name}: "
        + ", ".join(
            f"{place} {100 * value[0]:.0f} %"
            for place, value in zip(places, one.values, strict=True)
            if value
        )
        for one in series
    )


def titles(models: Sequence[ModelResults]) -> Callable[[ModelResults], str]:
    """Names of attacked models: with the size of their grid where these differ."""
    sizes = {grid_size(model.attack or {}) for model in models}
    if len(sizes) == 1:
        return lambda model: model.name
    return lambda model: f"{model.name}, {grid_size(model.attack or {})}"
