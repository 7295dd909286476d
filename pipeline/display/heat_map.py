"""Heat maps of shares, with the percentage in each cell: confusion, groups, train x test matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from matplotlib.patches import Rectangle

from pipeline.display.style import (
    HEAT,
    INK,
    MODELS,
    ON_HEAT,
    SOFT,
    WIDTH,
    Drawn,
    drawn,
    new_figure,
    styled,
)

_BELOW_ZERO = MODELS[1]
_DARK = 0.55
"""Above this strength (0 to 1), a cell is so dark that its number is written in the light
colour."""
_SHADED = 0.005
"""Cells of smaller strength are not shaded, and their number is grey."""
_ROW = 26
_ABOVE, _RIGHT = 26, 8


@dataclasses.dataclass(frozen=True)
class HeatMapLayout:
    """Layout of the cells, in units of the SVG's view box.

    Attributes:
      left, below: room for the names of rows and of columns.
      labels: distances of the axis labels of rows and of columns from the cells.
      width: smallest width of the figure.
      column: width of a column; None if columns share the figure's width.
    """

    left: int
    below: int
    labels: tuple[int, int]
    width: int
    column: int | None


CLASSES = HeatMapLayout(left=134, below=110, labels=(122, 94), width=WIDTH, column=None)
"""Layout for names of superclasses."""
VERSIONS = HeatMapLayout(left=88, below=72, labels=(78, 58), width=260, column=32)
"""Layout for short names of versions; wide enough for the title even with few columns."""


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    layout: HeatMapLayout,
    labels: tuple[str, str],
    *,
    marked: tuple[int, int] | None = None,
    bold: Sequence[Sequence[bool]] | None = None,
    is_signed: bool = False,
) -> Drawn:
    """Draws a heat map.

    Args:
      title: text above the figure.
      rows, columns: names of the rows from the top, and of the columns from the left.
      shares: fractions by row and column; the cell of None stays empty.
      layout: `CLASSES` or `VERSIONS`, by what the names stand for.
      labels: axis labels of the rows and of the columns.
      marked: row and column of a cell to frame.
      bold: cells to write in bold.
      is_signed: whether the shares are differences; cells below zero then have another colour.
    """
    across = (layout.column or 0) * len(columns) or layout.width - layout.left - _RIGHT
    width = max(layout.left + across + _RIGHT, layout.width)
    down = _ROW * len(rows)
    height = _ABOVE + down + layout.below
    with styled():
        figure = new_figure(width, height)
        # A constrained layout would take as long as all other drawing.
        figure.set_layout_engine("none")
        axes = figure.add_axes(
            (layout.left / width, layout.below / height, across / width, down / height)
        )
        axes.set_title(title, x=(4 - layout.left) / across)
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                if share is None:
                    continue
                # Most differences are below 0.5, so they use twice the scale.
                strength = min(1.0, 2 * abs(share)) if is_signed else share
                is_shaded = strength >= _SHADED
                if is_shaded:
                    colour = _BELOW_ZERO if share < 0 else HEAT
                    axes.add_patch(
                        _cell(x, y, facecolor=colour, alpha=0.04 + 0.96 * strength, linewidth=0)
                    )
                axes.text(
                    x,
                    y,
                    f"{100 * share:{'+' if is_signed else ''}.0f}",
                    ha="center",
                    va="center",
                    fontweight="bold" if bold and bold[y][x] else "normal",
                    color=ON_HEAT if strength > _DARK else INK if is_shaded else SOFT,
                )
        if marked:
            axes.add_patch(_cell(marked[1], marked[0], fill=False, edgecolor=INK, linewidth=1.8))
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xticks(
            range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor"
        )
        axes.tick_params(length=0)
        axes.tick_params(axis="x", labelcolor=INK)
        axes.spines[:].set_visible(False)
        axes.set_ylabel(labels[0], labelpad=2)
        axes.set_xlabel(labels[1])
        axes.yaxis.set_label_coords(-layout.labels[0] / across, 0.5)
        axes.xaxis.set_label_coords(0.5, -layout.labels[1] / down)
        return drawn(figure)


def _cell(x: int, y: int, **style: Any) -> Rectangle:
    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, **style)
