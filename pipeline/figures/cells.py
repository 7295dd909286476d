"""A table of shares as shaded cells: confusion, and accuracy by foreground and background."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.figures.heat_map import Frame, name_cells, new_cells, outline, shade, write
from pipeline.figures.style import LINE, styled, to_svg

_WIDTH = 440
_LEFT, _ABOVE, _BELOW, _RIGHT = 138, 26, 104, 8
"""Room for names of superclasses and for the title."""
_ROW_HEIGHT = 26
_LABELS = (124, 90)
"""How far the axes' labels stand from the cells."""
_SHADED = 0.005
"""Smaller shares are written as 0, in grey, and not shaded."""


def cells_figure(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    marked: tuple[int, int] | None = None,
    labels: tuple[str, str] = ("", ""),
) -> bytes:
    """Shares as shaded cells, each with its percent: an SVG file.

    Args:
      title: above the figure.
      rows, columns: their names, from the top and from the left.
      shares: fractions by row and column; None stays empty.
      marked: a cell to frame.
      labels: what the rows and the columns are.
    """
    cells = (_WIDTH - _LEFT - _RIGHT, _ROW_HEIGHT * len(rows))
    frame = Frame(_WIDTH, cells, _LEFT, _ABOVE, _BELOW)
    with styled():
        figure, axes = new_cells(frame)
        axes.set_title(title)
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                if share is None:
                    continue
                is_shaded = share >= _SHADED
                if is_shaded:
                    shade(axes, x, y, 0.06 + 0.94 * share)
                text = f"{100 * share:.0f}"
                write(axes, x, y, text, strength=share, is_soft=not is_shaded, size=9.5)
        if marked:
            outline(axes, marked[1], marked[0])
        name_cells(axes, frame, rows, columns, labels, _LABELS)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(LINE)
        return to_svg(figure)
