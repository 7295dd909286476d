"""The train x test matrix as shaded cells, in the order of the paper's table 5."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import Rectangle

from pipeline.figures.style import HEAT, INK, MODELS, ON_HEAT, SOFT, new_figure, styled, to_svg

SHORT = {
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
"""The paper's names."""

_BELOW_ZERO = MODELS[1]
_DARK = 0.55
_CELL = (38, 26)
_LEFT, _ABOVE, _BELOW = 84, 26, 66
_NARROWEST = 260


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
    cells = _CELL[0] * len(names)
    # Few columns leave room for the title, too.
    width = max(_LEFT + cells + 8, _NARROWEST)
    height = _CELL[1] * len(names)
    whole = _ABOVE + height + _BELOW
    with styled():
        figure = new_figure(width, whole)
        # A layout that looks for room takes as long as all the rest.
        figure.set_layout_engine("none")
        place = (_LEFT / width, _BELOW / whole, cells / width, height / whole)
        axes = figure.add_axes(place)
        axes.set_title(title, x=(4 - _LEFT) / cells)
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                if share is None:
                    continue
                # Half of the scale is more than most differences take.
                strength = min(1.0, 2 * abs(share)) if is_signed else share
                colour = _BELOW_ZERO if is_signed and share < 0 else HEAT
                axes.add_patch(
                    Rectangle(
                        (x - 0.48, y - 0.46),
                        0.96,
                        0.92,
                        facecolor=colour,
                        alpha=0.04 + 0.96 * strength,
                        linewidth=0,
                    )
                )
                is_bold = bold is not None and bold[y][x]
                axes.text(
                    x,
                    y,
                    f"{100 * share:+.0f}" if is_signed else f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=10,
                    fontweight="bold" if is_bold else "normal",
                    color=ON_HEAT if strength > _DARK else INK if strength > 0.1 else SOFT,
                )
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        labels = [SHORT.get(name, name) for name in names]
        axes.set_yticks(range(len(names)), labels)
        axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.tick_params(axis="x", labelcolor=INK)
        axes.set_ylabel("trained on", labelpad=2)
        axes.set_xlabel("tested on")
        axes.yaxis.set_label_coords(-74 / cells, 0.5)
        axes.xaxis.set_label_coords(0.5, -54 / height)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        return to_svg(figure)
