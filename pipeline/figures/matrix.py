"""The train x test matrix as shaded cells, in the order of the paper's table 5."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.figures.heat_map import Frame, name_cells, new_cells, shade, write
from pipeline.figures.style import HEAT, MODELS, styled, to_svg

_NAMES = {
    "mixed_next": "M-Next",
    "mixed_rand": "M-Rand",
    "mixed_same": "M-Same",
    "no_fg": "No-FG",
    "only_bg_b": "BG-B",
    "only_bg_t": "BG-T",
    "only_fg": "Only-FG",
    "original": "Original",
    "in9l": "IN-9L",
}
"""The names in the paper's table 5."""

_BELOW_ZERO = MODELS[1]
_CELL = (38, 26)
_LEFT, _ABOVE, _BELOW, _RIGHT = 84, 26, 66, 8
_LABELS = (74, 54)
"""How far the axes' labels stand from the cells."""
_NARROWEST = 260
"""Width that leaves room for the title where there are few columns."""


def matrix_figure(
    title: str,
    names: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    bold: Sequence[Sequence[bool]] | None = None,
    *,
    is_signed: bool = False,
) -> bytes:
    """A matrix: an SVG file.

    Args:
      title: above the figure.
      names: of rows and columns.
      shares: fractions by row and column; None stays empty.
      bold: cells to write in bold.
      is_signed: whether they are differences, which have another colour below zero.
    """
    cells = (_CELL[0] * len(names), _CELL[1] * len(names))
    width = max(_LEFT + cells[0] + _RIGHT, _NARROWEST)
    frame = Frame(width, cells, _LEFT, _ABOVE, _BELOW)
    with styled():
        figure, axes = new_cells(frame)
        axes.set_title(title, x=(4 - _LEFT) / cells[0])
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                if share is None:
                    continue
                # Half of the scale is more than most differences take.
                strength = min(1.0, 2 * abs(share)) if is_signed else share
                colour = _BELOW_ZERO if is_signed and share < 0 else HEAT
                shade(axes, x, y, 0.04 + 0.96 * strength, colour)
                is_bold = bold is not None and bold[y][x]
                write(
                    axes,
                    x,
                    y,
                    f"{100 * share:+.0f}" if is_signed else f"{100 * share:.0f}",
                    strength=strength,
                    is_soft=strength <= 0.1,
                    size=10,
                    weight="bold" if is_bold else "normal",
                )
        labels = [_NAMES.get(name, name) for name in names]
        name_cells(axes, frame, labels, labels, ("trained on", "tested on"), _LABELS)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        return to_svg(figure)
