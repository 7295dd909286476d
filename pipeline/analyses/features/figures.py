"""The figure of features: shares of their variance."""

from collections.abc import Iterator

from pipeline.analyses.features.results import FeaturesResult, Share
from pipeline.display.panel import COMPARED
from pipeline.display.plot import Plot, Series, rows_figure, spoken
from pipeline.display.table import shorten
from pipeline.evaluate.evidence import Evidence

_NAMES: dict[Share, str] = {
    "foreground": "foreground",
    "background": "background",
    "interaction": "interaction",
    "class": "of the background: its class",
}


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figure if there are results."""
    results = evidence.models_with(FeaturesResult)[:COMPARED]
    if results:
        names = [shorten(model.name, 22) for model, _ in results]
        series = [
            Series(name, values)
            for share, name in _NAMES.items()
            if any(values := tuple(one.shares[share] for _, one in results))
        ]
        yield Plot(
            "features",
            "features.svg",
            f"Shares of the variance of features. {spoken(series, names)}",
            rows_figure("What features consist of", names, series, "share of the variance, %"),
        )
