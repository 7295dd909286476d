"""The figure of features: shares of their variance."""

from collections.abc import Iterator

from pipeline.analyses.features.results import FeaturesResult
from pipeline.display.panel import COMPARED
from pipeline.display.plot import Plot, Series, rows_figure, spoken
from pipeline.display.table import shorten
from pipeline.evaluate.evidence import Evidence

_NAMES = {"class": "class, of the background"}


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figure if there are results."""
    shown = evidence.models_with(FeaturesResult)[:COMPARED]
    if shown:
        names = [shorten(model.name, 22) for model, _ in shown]
        series = [
            Series(_NAMES.get(share, share), tuple(result.shares[share] for _, result in shown))
            for share in SHARES
        ]
        title = "What features consist of"
        yield Plot(
            "features",
            "features.svg",
            f"Shares of the variance of features. {spoken(series, names)}",
            rows_figure(title, names, series, "share, %"),
        )
