"""The figure of the trend: accuracy against accuracy on ImageNet (paper figure 8)."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter
from scipy.optimize import isotonic_regression

from pipeline.analyses.imagenet.results import Top1, Trend, TrendLine, TrendPoint, read_trend
from pipeline.display.plot import Plot
from pipeline.display.style import (
    INK,
    LINE,
    MARKERS,
    MODELS,
    SOFT,
    TITLE,
    WIDTH,
    Drawn,
    drawn,
    new_figure,
    percent_axis,
    styled,
)
from pipeline.display.table import shorten
from pipeline.evaluate.evidence import Evidence
from transforms.variants import BG_GAP, PAPER_NAMES

_VARIANTS = ("mixed_same", "mixed_rand", "mixed_next", "no_fg", "only_bg_t")
"""The variants, in the order that their accuracies usually have."""

_MAX_NAMES = 16
"""Largest number of models whose names fit beside each other."""
_NAME_LENGTH = 26
_CHARACTER = 6.5
"""Width of a character of a model's name, in pixels."""
_LINE_HEIGHT = 14
_RIGHT = 78
_LEFT = 44
_BOTTOM = 58
_PANEL = 250
_GAP_PANEL = 96
_BETWEEN = 16


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figure if the trend has lines."""
    if trend := read_trend(evidence):
        slopes = ", ".join(
            f"{line.variant} {line.slope:.2f} [{line.slope_low:.2f}, {line.slope_high:.2f}]"
            for line in trend.lines
        )
        yield Plot(
            "trend",
            "trend.svg",
            "Accuracy on the variants against accuracy on ImageNet. Slopes with 95 % intervals: "
            f"{slopes}",
            trend_figure(trend),
        )


def trend_figure(trend: Trend) -> Drawn:
    """Draws accuracy on each variant with its best-fit line and band, and BG-Gap below.

    Points without an accuracy on ImageNet are left out; at least one must have it.
    """
    points = [(point, known) for point in trend.points if (known := point.top1)]
    lines = {line.variant: line for line in trend.lines}
    top1 = {point.model: known.imagenet_top1 for point, known in points}
    shown = _spread(sorted(top1, key=lambda model: (top1[model], model)))
    names = {model: shorten(model, _NAME_LENGTH) for model in shown}
    height = (
        58 + _CHARACTER * max(map(len, names.values())) + _PANEL + _BETWEEN + _GAP_PANEL + _BOTTOM
    )
    with styled():
        figure = new_figure(WIDTH, round(height), layout=None)
        width = WIDTH - _LEFT - _RIGHT
        main, gap = (
            figure.add_axes((_LEFT / WIDTH, bottom / height, width / WIDTH, tall / height))
            for bottom, tall in (
                (_BOTTOM + _GAP_PANEL + _BETWEEN, _PANEL),
                (_BOTTOM, _GAP_PANEL),
            )
        )
        figure.text(
            8 / WIDTH,
            1 - 20 / height,
            "Accuracy against ImageNet accuracy",
            fontsize=TITLE,
            fontweight="bold",
        )
        figure.text(
            8 / WIDTH,
            1 - 36 / height,
            "beside each line: its slope; shaded: its 95 % band",
            color=SOFT,
        )
        low, high = min(top1.values()), max(top1.values())
        margin = max(0.06 * (high - low), 0.01)
        limits = (low - margin, high + margin)
        percent_axis(main, "y")
        main.set_ylim(-0.01, 1.0)
        gaps = [one for one in points if one[0].variant == BG_GAP]
        bounds = [bound for point, _ in gaps for bound in point.reach]
        percent_axis(gap, "y", MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=3))
        gap.set_ylim(min([0.0, *bounds]) - 0.01, max([0.05, *bounds]) + 0.01)
        for axes in (main, gap):
            axes.set_xlim(limits)
            # Ticks are whole percents, of which a narrow axis has few.
            axes.xaxis.set_major_locator(
                MultipleLocator(0.01)
                if limits[1] - limits[0] < 0.05
                else MaxNLocator(6, steps=[1, 2, 5, 10])
            )
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, 0, "", False))
            axes.tick_params(axis="y", length=0)
            for model in shown:
                axes.axvline(top1[model], color=LINE, linewidth=0.8, zorder=0)
        main.tick_params(axis="x", length=0, labelbottom=False)
        main.set_ylabel("accuracy, %")
        gap.set(xlabel=f"top-1 accuracy on ImageNet, %\n{_source(points)}", ylabel="BG-Gap, points")
        figure.align_ylabels((main, gap))
        ends = []
        for number, variant in enumerate(_VARIANTS):
            of_variant = [one for one in points if one[0].variant == variant]
            if of_variant:
                end = _draw(main, of_variant, lines.get(variant), number)
                ends.append((end, PAPER_NAMES[variant], lines.get(variant), MODELS[number]))
        _label_ends(main, ends, _PANEL)
        if gaps:
            end = _draw(gap, gaps, lines.get(BG_GAP), len(_VARIANTS))
            _label_ends(
                gap, [(end, "BG-Gap", lines.get(BG_GAP), MODELS[len(_VARIANTS)])], _GAP_PANEL
            )
        _label_models(main, [(top1[model], names[model]) for model in shown], width)
        return drawn(figure)


_Point = tuple[TrendPoint, Top1]
"""A point, and the accuracy of its model on ImageNet."""


def _source(points: Sequence[_Point]) -> str:
    """Says where accuracies on ImageNet come from, and at which input size they were measured."""
    sizes = sorted({top1.imagenet_input_size for _, top1 in points})
    at = f" at {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''} px"
    if all(top1.imagenet_source.startswith("published") for _, top1 in points):
        return f"published{at}"
    images = {top1.imagenet_n for _, top1 in points}
    return (f"on {min(images):,} images" if len(images) == 1 else "measured or published") + at


def _spread(models: Sequence[str]) -> list[str]:
    """Picks the models to name, in order: all models, or `_MAX_NAMES` of them, evenly spread."""
    chosen = np.unique(np.linspace(0, len(models) - 1, _MAX_NAMES).round().astype(int))
    return [models[i] for i in chosen]


def _draw(
    axes: Axes,
    points: Sequence[_Point],
    line: TrendLine | None,
    number: int,
) -> float:
    """Draws a variant's points and line, over the models' accuracies on ImageNet.

    Returns the accuracy at the line's right end or, without a line, at the rightmost point.
    """
    colour, marker = MODELS[number], MARKERS[number]
    xs = [top1.imagenet_top1 for _, top1 in points]
    ys = [point.accuracy for point, _ in points]
    axes.vlines(
        xs,
        *zip(*(point.reach for point, _ in points), strict=True),
        color=colour,
        linewidth=1.2,
        alpha=0.35,
    )
    axes.plot(xs, ys, marker, color=colour, markersize=4.5, markeredgewidth=0)
    if line is None:
        return float(ys[xs.index(max(xs))])
    at, lows, highs = zip(*line.band, strict=True)
    heights = [line.intercept + line.slope * x for x in at]
    axes.fill_between(at, lows, highs, color=colour, alpha=0.12, linewidth=0)
    axes.plot(at, heights, color=colour, linewidth=1.4, alpha=0.8)
    return float(heights[-1])


def _label_ends(
    axes: Axes,
    ends: Sequence[tuple[float, str, TrendLine | None, str]],
    pixels: float,
) -> None:
    """Writes the names of variants, and the slopes of their lines, to the right of the lines."""
    low, high = axes.get_ylim()
    per_pixel = (high - low) / pixels
    wanted = [(high - end) / per_pixel for end, *_ in ends]
    positions = apart(wanted, [(2 if line else 1) * _LINE_HEIGHT for _, _, line, _ in ends], pixels)
    for (_, name, line, colour), position in zip(ends, positions, strict=True):
        y = high - position * per_pixel
        up = _LINE_HEIGHT / 2 * per_pixel if line else 0.0
        x, transform = 1.02, axes.get_yaxis_transform()
        axes.text(x, y + up, name, color=colour, va="center", transform=transform)
        if line:
            axes.text(
                x,
                y - up,
                f"{line.slope:.{2 if abs(line.slope) < 10 else 1}f}".replace("-", "\N{MINUS SIGN}"),
                color=SOFT,
                va="center",
                transform=transform,
            )


def _label_models(axes: Axes, models: Sequence[tuple[float, str]], pixels: float) -> None:
    """Writes names of models vertically above the plot, each joined by a line to its model."""
    low, high = axes.get_xlim()
    per_pixel = (high - low) / pixels
    wanted = [(x - low) / per_pixel for x, _ in models]
    positions = apart(wanted, [_LINE_HEIGHT] * len(models), pixels)
    transform = axes.get_xaxis_transform()
    for (x, name), position in zip(models, positions, strict=True):
        at = low + position * per_pixel
        axes.plot(
            [x, at],
            [1.0, 1.04],
            color=LINE,
            linewidth=0.8,
            transform=transform,
            clip_on=False,
            scalex=False,
            scaley=False,
        )
        axes.text(
            at,
            1.05,
            name,
            rotation=90,
            rotation_mode="anchor",
            ha="left",
            va="center",
            color=INK,
            transform=transform,
        )


def apart(wanted: Sequence[float], sizes: Sequence[float], length: float) -> list[float]:
    """Moves labels apart so that they do not overlap, each as little as possible.

    `wanted` are their centres, `sizes` their extents. They stay within 0 to `length` if they fit.
    """
    # Labels do not overlap if their distances from where they would stand side by side rise.
    order = np.argsort(wanted, kind="stable")
    extents = np.asarray(sizes, np.float64)[order]
    centres = np.cumsum(extents) - extents / 2
    starts = isotonic_regression(np.asarray(wanted)[order] - centres).x if len(order) else centres
    room = length - extents.sum()
    positions = np.empty(len(order))
    positions[order] = starts.clip(min(0.0, room), room) + centres
    return list(map(float, positions))
