"""The figure of features: shares of their variance."""

from collections.abc import Iterator

from pipeline.analyses.features.results import FeaturesResult
from pipeline.display.panel import COMPARED
from pipeline.display.plot import Plot, Series, rows_figure, spoken
from pipeline.display.table import shorten
from pipeline.evaluate.evidence import Evidence

_NAMES = ("foreground", "background", "interaction", "of the background's: its class")


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figure if there are results."""
    results = evidence.models_with(FeaturesResult)[:COMPARED]
    if results:
        names = [shorten(model.name, 22) for model, _ in results]
        estimates = zip(*(one.shares.values() for _, one in results), strict=True)
        named = zip(_NAMES, estimates, strict=True)
        series = [Series(name, values) for name, values in named if any(values)]
        yield Plot(
            "features",
            "features.svg",
            f"Shares of the variance of features. {spoken(series, names)}",
            rows_figure("What features consist of", names, series, "share of the variance, %"),
        )
