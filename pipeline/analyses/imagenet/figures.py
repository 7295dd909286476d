"""The figure of the trend."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.analyses.imagenet.panel import read_trend
from pipeline.analyses.imagenet.trend_figure import trend_figure
from pipeline.display.evidence import Evidence
from pipeline.display.plot import Plot


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figure if the trend has lines."""
    if trend := read_trend(evidence):
        slopes = ", ".join(f"{line.variant} {line.slope:.2f}" for line in trend.lines)
        yield Plot(
            "trend",
            "trend.svg",
            f"Accuracy on the variants against accuracy on ImageNet. Slopes: {slopes}",
            trend_figure(trend),
        )
