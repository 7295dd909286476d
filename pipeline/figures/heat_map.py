"""Shaded cells with a number in each, which confusion and the train x test matrix share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.figures.style import HEAT, INK, ON_HEAT, SOFT, new_figure

_DARK = 0.55
"""Strength from which on a cell is so dark that its number is written in the other colour."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where the cells lie in a figure; all in units of the SVG's view box.

    Attributes:
      width: of the figure.
      cells: (width, height) of all cells together.
      left, above, below: room beside them, for names of rows, the title, and names of columns.
    """

    width: int
    cells: tuple[int, int]
    left: int
    above: int
    below: int


def new_cells(frame: Frame) -> tuple[Figure, Axes]:
    """A figure without cells yet: a row is 1 high, a column 1 wide, the first at 0."""
    width, height = frame.cells
    whole = frame.above + height + frame.below
    figure = new_figure(frame.width, whole)
    # A layout that looks for room takes as long as all the rest.
    figure.set_layout_engine("none")
    place = (
        *(frame.left / frame.width, frame.below / whole),
        *(width / frame.width, height / whole),
    )
    return figure, figure.add_axes(place)


def shade(axes: Axes, x: int, y: int, alpha: float, colour: str = HEAT) -> None:
    """Shades a cell."""
    axes.add_patch(_cell(x, y, facecolor=colour, alpha=alpha, linewidth=0))


def outline(axes: Axes, x: int, y: int) -> None:
    """Frames a cell."""
    axes.add_patch(_cell(x, y, fill=False, edgecolor=INK, linewidth=1.8))


def _cell(x: int, y: int, **style: Any) -> Rectangle:
    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, **style)


def write(
    axes: Axes,
    x: int,
    y: int,
    text: str,
    *,
    strength: float,
    is_soft: bool,
    size: float,
    weight: str = "normal",
) -> None:
    """Writes into a cell.

    Args:
      axes: of `new_cells`.
      x, y: of the cell.
      text: to write.
      strength: of its shade, from 0 to 1.
      is_soft: whether it says little, and is written in grey.
      size, weight: of the font.
    """
    axes.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        fontsize=size,
        fontweight=weight,
        color=ON_HEAT if strength > _DARK else SOFT if is_soft else INK,
    )


def name_cells(
    axes: Axes,
    frame: Frame,
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str],
    distances: tuple[int, int],
) -> None:
    """Names rows and columns.

    Args:
      axes, frame: of `new_cells`.
      rows, columns: their names, from the top and from the left.
      labels: what the rows and the columns are.
      distances: of these from the cells.
    """
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelcolor=INK)
    axes.set_ylabel(labels[0], labelpad=2)
    axes.set_xlabel(labels[1])
    axes.yaxis.set_label_coords(-distances[0] / frame.cells[0], 0.5)
    axes.xaxis.set_label_coords(0.5, -distances[1] / frame.cells[1])
