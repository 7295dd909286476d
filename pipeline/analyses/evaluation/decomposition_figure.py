"""Shares of images by what a model needs to recognise them (paper, per-image decomposition)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.patches import Patch

from pipeline.analyses.evaluation.latex import KIND_NAMES
from pipeline.display.short_names import shorten
from pipeline.display.style import (
    INK,
    LINE,
    MODELS,
    SOFT,
    WIDTH,
    Drawn,
    drawn,
    new_figure,
    percent_axis,
    styled,
)

_COLOURS = dict(zip(KIND_NAMES, (*MODELS[:4], LINE, SOFT), strict=True))
_LABELLED = 0.06
"""Smallest share whose number fits beneath its part of the bar."""


def decomposition_figure(title: str, models: Sequence[tuple[str, Mapping[str, float]]]) -> Drawn:
    """Draws a stacked bar for each model.

    Args:
      title: text above the figure.
      models: (name, share of images by kind) of each bar, from the top.
    """
    with styled():
        figure = new_figure(WIDTH, 120 + 58 * len(models))
        axes = figure.add_subplot()
        axes.set_title(title)
        percent_axis(axes, "x")
        for row, (name, shares) in enumerate(models):
            left = 0.0
            for kind, colour in _COLOURS.items():
                share = shares.get(kind, 0.0)
                axes.barh(row, share, left=left, height=0.34, color=colour, linewidth=0)
                if share >= _LABELLED:
                    axes.text(
                        left + share / 2,
                        row + 0.2,
                        f"{100 * share:.1f}",
                        ha="center",
                        va="top",
                        color=INK,
                    )
                left += share
            axes.text(0, row - 0.2, shorten(name, 40), ha="left", va="bottom")
        axes.set_yticks([])
        axes.set_ylim(len(models) - 0.45, -0.6)
        axes.set_xlabel("share of images, %")
        axes.spines["left"].set_visible(False)
        swatches = [
            Patch(facecolor=colour, linewidth=0, label=KIND_NAMES[kind])
            for kind, colour in _COLOURS.items()
        ]
        figure.legend(
            handles=swatches, loc="outside lower left", ncols=2, handlelength=1, columnspacing=1.2
        )
        return drawn(figure)
