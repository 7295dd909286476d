"""A table of shares as shaded cells: confusion, and accuracy by foreground and background."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import Rectangle

from pipeline.figures.style import HEAT, INK, LINE, ON_HEAT, SOFT, new_figure, styled, to_svg

_WIDTH = 440
_LEFT = 138
_ABOVE = 26
_BELOW = 104
"""Room for names of superclasses and for the title."""
_DARK = 0.55
"""Share from which on a cell is so dark that its number is written in the other colour."""


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
    with styled():
        height = 26 * len(rows)
        figure = new_figure(_WIDTH, _ABOVE + height + _BELOW)
        # A layout that looks for room takes as long as all the rest.
        figure.set_layout_engine("none")
        whole = _ABOVE + height + _BELOW
        place = (_LEFT / _WIDTH, _BELOW / whole, (_WIDTH - _LEFT - 8) / _WIDTH, height / whole)
        axes = figure.add_axes(place)
        axes.set_title(title)
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                if share is None:
                    continue
                if share >= 0.005:
                    axes.add_patch(
                        Rectangle(
                            (x - 0.48, y - 0.46),
                            0.96,
                            0.92,
                            facecolor=HEAT,
                            alpha=0.06 + 0.94 * share,
                            linewidth=0,
                        )
                    )
                axes.text(
                    x,
                    y,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=9.5,
                    color=ON_HEAT if share > _DARK else INK if share >= 0.005 else SOFT,
                )
        if marked:
            axes.add_patch(
                Rectangle(
                    (marked[1] - 0.48, marked[0] - 0.46),
                    0.96,
                    0.92,
                    fill=False,
                    edgecolor=INK,
                    linewidth=1.8,
                )
            )
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xticks(
            range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor"
        )
        axes.tick_params(length=0)
        axes.tick_params(axis="x", labelcolor=INK)
        axes.set_ylabel(labels[0], labelpad=2)
        axes.set_xlabel(labels[1])
        axes.yaxis.set_label_coords(-124 / (_WIDTH - _LEFT - 8), 0.5)
        axes.xaxis.set_label_coords(0.5, -90 / height)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(LINE)
        return to_svg(figure)
