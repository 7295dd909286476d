"""Figures of the report: accuracies in rows and along lines, heat maps, and what figures share.

If there are many classes, figures show only the worst, because a figure of a thousand rows is
unreadable. The CSV files list all classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline.display.style import (
    HEAT,
    INK,
    MARKERS,
    MODELS,
    ON_HEAT,
    PAGE,
    SOFT,
    WIDTH,
    Drawn,
    drawn,
    legend_below,
    new_figure,
    styled,
    titled_axes,
)
from pipeline.display.table import shorten
from transforms.intervals import Estimate
from transforms.taxonomy import Taxonomy

FEW_IMAGES = 20
"""Figures show in grey what rests on fewer images."""
MOST_ROWS = 24
MOST_CELLS = 9
"""Largest number of classes that a figure shows: `MOST_ROWS` if classes are only its rows,
`MOST_CELLS` if they are its rows and its columns."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
      panel: name of the group of figures on the page that it belongs to.
      file: name of its SVG file in the folder of figures.
      alt: description for readers who cannot see it.
      model: name of the model that it shows; "" if it shows several.
    """

    panel: str
    file: str
    alt: str
    drawn: Drawn
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Series:
    """A model's points: an estimate for each row or position of the figure; None if missing.

    Attributes:
      others: a figure for each row, which is joined to the estimate and has a hollow marker; empty
        if there are none.
    """

    name: str
    values: tuple[Estimate | None, ...]
    others: tuple[float | None, ...] = ()


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


def worst_classes(scores: Mapping[int, float], count: int, most: int) -> list[int]:
    """Selects the up to `most` labels that a figure shows, and returns them in ascending order.

    Labels with the lowest scores are selected first, labels without a score last.

    >>> worst_classes({0: 0.9, 1: 0.2, 2: 0.5}, 4, 2)
    [1, 2]
    """
    order = sorted(range(count), key=lambda label: (scores.get(label, 2.0), label))
    return sorted(order[:most])


def of_all(shown: Sequence[int], taxonomy: Taxonomy) -> str:
    """Returns the note for the title that classes are left out; "" if all classes are shown."""
    count = taxonomy.num_labels
    return f" (worst {len(shown)} of {count})" if len(shown) < count else ""


def by_class(
    models: Sequence[tuple[str, Mapping[int, Estimate]]],
    num_labels: int,
    *,
    is_high_worse: bool = False,
) -> tuple[list[int], list[Series]]:
    """Selects the labels that a figure has as rows, and the models that have one of them.

    Of many, it shows those that are worst for the first of the `models`, (name, figures by label),
    that has figures.
    """
    first = next((figures for _, figures in models if figures), {})
    scores = {label: 1 - one[0] if is_high_worse else one[0] for label, one in first.items()}
    shown = worst_classes(scores, num_labels, MOST_ROWS)
    series = (Series(name, tuple(map(figures.get, shown))) for name, figures in models)
    return shown, [one for one in series if any(one.values)]


def rows_figure(
    title: str,
    rows: Sequence[str],
    series: Sequence[Series],
    x_label: str = "accuracy, %",
    counts: Sequence[int] = (),
    *,
    signed: bool = False,
) -> Drawn:
    """Draws accuracy by row, such as by class.

    Args:
      rows: names of the rows, from the top.
      series: up to `len(MODELS)` models, each with a value for one row or more.
      counts: number of images of each row, written beside it; a row of fewer than `FEW_IMAGES` is
        grey. Empty to write none.
      signed: whether the values are differences: the axis is as long as these, with a line at 0.
    """
    with styled():
        height = 70 + len(rows) * (16 + 9 * len(series)) + 10 * len(series)
        locator = MaxNLocator(7, steps=[1, 2, 5, 10]) if signed else None
        figure, axes = titled_axes(title, height, "x", locator)
        for number, one in enumerate(series):
            offset = (number - (len(series) - 1) / 2) * 0.72 / max(len(series), 2)
            points = [(row, *value) for row, value in enumerate(one.values) if value]
            with_value, estimates, lows, highs = zip(*points, strict=True)
            ys = [row + offset for row in with_value]
            few = [bool(counts) and counts[row] < FEW_IMAGES for row in with_value]
            colours = [SOFT if is_few else MODELS[number] for is_few in few]
            marker = MARKERS[number]
            axes.hlines(ys, lows, highs, color=colours, alpha=0.55)
            if one.others:
                others = [one.others[row] for row in with_value]
                axes.hlines(ys, estimates, others, color=colours, linewidth=2.4, alpha=0.3)
                axes.scatter(others, ys, marker=marker, facecolor=PAGE, edgecolor=colours, zorder=3)
            axes.scatter(estimates, ys, marker=marker, color=colours, zorder=4)
            axes.plot([], [], marker, color=MODELS[number], label=shorten(one.name))
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.4, -0.6))
        axes.set_xlabel(x_label, loc="right")
        if signed:
            axes.axvline(0, color=INK, linewidth=0.8, zorder=0)
            axes.autoscale(axis="x")
        for row, count in enumerate(counts):
            beside = axes.get_yaxis_transform()
            axes.text(1.03, row, f"{count:,}", color=SOFT, va="center", transform=beside)
        if counts:
            axes.annotate("n", (1.03, 1), (0, 6), "axes fraction", "offset points", color=SOFT)
        legend_below(figure, axes)
        return drawn(figure)


def lines_figure(
    title: str,
    positions: Sequence[float],
    labels: Sequence[str],
    series: Sequence[Series],
    x_label: str,
    log: bool = False,
    *,
    signed: bool = False,
) -> Drawn:
    """Draws accuracies of up to `len(MODELS)` models at labelled positions, joined by lines.

    If they are `signed`, they are differences, as for `rows_figure`, at positions 0, 1, 2, ...,
    with a line for each interval in place of a band.
    """
    with styled():
        figure, axes = titled_axes(
            title,
            270 + 12 * len(series),
            "y",
            MaxNLocator(7, steps=[1, 2, 5, 10]) if signed else None,
        )
        if log:
            axes.set_xscale("log")
            axes.minorticks_off()
        for number, one in enumerate(series):
            points = [(x, v) for x, v in zip(positions, one.values, strict=True) if v]
            xs = [x + signed * 0.1 * number for x, _ in points]
            axes.plot(
                xs,
                [value[0] for _, value in points],
                color=MODELS[number],
                marker=MARKERS[number],
                label=shorten(one.name),
            )
            if signed:
                axes.vlines(
                    xs,
                    *zip(*(v[1:] for _, v in points), strict=True),
                    color=MODELS[number],
                    alpha=0.55,
                )
            elif any(low < high for _, (_, low, high) in points):
                axes.fill_between(
                    xs,
                    [value[1] for _, value in points],
                    [value[2] for _, value in points],
                    color=MODELS[number],
                    alpha=0.13,
                    linewidth=0,
                )
        axes.set_xticks(positions, labels)
        axes.set(ylim=(-0.02, 1.02), xlabel=x_label, ylabel="points" if signed else "accuracy, %")
        if signed:
            axes.axhline(0, color=INK, linewidth=0.8, zorder=0)
            axes.autoscale(axis="y")
        legend_below(figure, axes)
        return drawn(figure)


_BELOW_ZERO = MODELS[1]
_DARK = 0.55
"""Above this strength (0 to 1), a cell is so dark that its number is written in the light
colour."""
_SHADED = 0.005
"""Cells of smaller strength are not shaded, and their number is grey."""
_CELL = (0.96, 0.92)
"""Width and height of a cell, in columns and rows."""
_ROW = 26
_ABOVE, _RIGHT = 26, 8


@dataclasses.dataclass(frozen=True)
class HeatMapLayout:
    """Layout of the cells, in units.

    Attributes:
      left, below: room for the names of rows and of columns.
      labels: distances of the axis labels of rows and of columns from the cells.
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
    starred: Sequence[Sequence[bool]] | None = None,
    is_signed: bool = False,
) -> Drawn:
    """Draws a heat map.

    Args:
      rows: names of the rows, from the top.
      columns: names of the columns, from the left.
      shares: fractions by row and column; the cell of None stays empty.
      layout: `CLASSES` or `VERSIONS`, by what the names stand for.
      labels: axis labels of the rows and of the columns.
      marked: row and column of a cell to frame.
      starred: cells whose number gets a star.
      is_signed: whether the shares are differences; cells below zero then have another colour.
    """
    across = (layout.column or 0) * len(columns) or layout.width - layout.left - _RIGHT
    width = max(layout.left + across + _RIGHT, layout.width)
    down = _ROW * len(rows)
    height = _ABOVE + down + layout.below
    with styled():
        # A constrained layout would take as long as all other drawing.
        figure = new_figure(width, height, layout=None)
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
                    axes.add_patch(
                        Rectangle(
                            (x - 0.48, y - 0.46),
                            *_CELL,
                            facecolor=_BELOW_ZERO if share < 0 else HEAT,
                            alpha=0.04 + 0.96 * strength,
                            linewidth=0,
                        )
                    )
                axes.text(
                    x,
                    y,
                    f"{100 * share:{'+' if is_signed else ''}.0f}"
                    + "*" * bool(starred and starred[y][x]),
                    ha="center",
                    va="center",
                    color=ON_HEAT if strength > _DARK else INK if is_shaded else SOFT,
                )
        if marked:
            corner = (marked[1] - 0.48, marked[0] - 0.46)
            axes.add_patch(Rectangle(corner, *_CELL, fill=False, edgecolor=INK, linewidth=1.2))
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
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
