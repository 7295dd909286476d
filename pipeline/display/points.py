"""Accuracies with intervals: one point for each model, in rows or along a line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.display.short_names import shorten
from pipeline.display.style import (
    MARKERS,
    MODELS,
    SOFT,
    WIDTH,
    Drawn,
    drawn,
    legend_below,
    new_figure,
    percent_axis,
    styled,
)


@dataclasses.dataclass(frozen=True)
class Series:
    """A model's points.

    Attributes:
      name: name of the model.
      values: (estimate, low, high) as fractions, one for each row or position of the figure; None
        if missing.
    """

    name: str
    values: tuple[tuple[float, float, float] | None, ...]


def rows_figure(
    title: str,
    rows: Sequence[str],
    series: Sequence[Series],
    x_label: str = "accuracy, %",
    counts: Sequence[int] = (),
) -> Drawn:
    """Draws accuracy by row, such as by class.

    Args:
      title: above the figure.
      rows: names of the rows, from the top.
      series: up to `len(MODELS)` models, with a value for each row.
      x_label: label of the x axis.
      counts: number of images of each row, written beside it; empty to write none.
    """
    with styled():
        figure = new_figure(WIDTH, 70 + len(rows) * (16 + 9 * len(series)) + 10 * len(series))
        axes = figure.add_subplot()
        axes.set_title(title)
        percent_axis(axes, "x")
        for number, one in enumerate(series):
            offset = (number - (len(series) - 1) / 2) * 0.72 / max(len(series), 2)
            ys = [row + offset for row, value in enumerate(one.values) if value]
            estimates = [value[0] for value in one.values if value]
            lows = [value[1] for value in one.values if value]
            highs = [value[2] for value in one.values if value]
            axes.hlines(ys, lows, highs, color=MODELS[number], linewidth=1.6, alpha=0.55)
            axes.plot(
                estimates,
                ys,
                MARKERS[number],
                color=MODELS[number],
                markersize=5,
                label=shorten(one.name),
            )
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(x_label)
        axes.spines["left"].set_visible(False)
        for row, count in enumerate(counts):
            beside = axes.get_yaxis_transform()
            axes.text(1.03, row, f"{count:,}", color=SOFT, va="center", transform=beside)
        if counts:
            axes.annotate("n", (1.03, 1), (0, 6), "axes fraction", "offset points", color=SOFT)
        legend_below(figure, axes, 1 if len(series) < 3 else 2)
        return drawn(figure)


def lines_figure(
    title: str,
    positions: Sequence[float],
    labels: Sequence[str],
    series: Sequence[Series],
    x_label: str,
    log: bool = False,
) -> Drawn:
    """Draws accuracies against a quantity on the x axis, joined by lines.

    Args:
      title: above the figure.
      positions: x coordinates of the values.
      labels: tick labels at the positions.
      series: up to `len(MODELS)` models, with a value for each position.
      x_label: label of the x axis.
      log: whether the x axis is logarithmic.
    """
    with styled():
        figure = new_figure(WIDTH, 270 + 12 * len(series))
        axes = figure.add_subplot()
        axes.set_title(title)
        percent_axis(axes, "y")
        if log:
            axes.set_xscale("log")
            axes.minorticks_off()
        for number, one in enumerate(series):
            points = [(x, v) for x, v in zip(positions, one.values, strict=True) if v]
            xs = [x for x, _ in points]
            axes.plot(
                xs,
                [value[0] for _, value in points],
                color=MODELS[number],
                marker=MARKERS[number],
                markersize=4.5,
                linewidth=1.6,
                label=shorten(one.name),
            )
            if any(low < high for _, (_, low, high) in points):
                axes.fill_between(
                    xs,
                    [value[1] for _, value in points],
                    [value[2] for _, value in points],
                    color=MODELS[number],
                    alpha=0.13,
                    linewidth=0,
                )
        axes.set_xticks(positions, labels)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(x_label)
        axes.set_ylabel("accuracy, %")
        legend_below(figure, axes, 1 if len(series) < 3 else 2)
        return drawn(figure)
