"""The parts of the trend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.analyses.evaluation.contributions import read_contributions
from pipeline.analyses.evaluation.summaries import read_summaries
from pipeline.analyses.imagenet.panel import CLAIMS, PANEL
from pipeline.analyses.imagenet.results import TABLES, TREND_FILE, Trend, write_trend
from pipeline.analyses.parts import Found, Parts
from pipeline.dataset.folder import Dataset
from pipeline.display.evidence import Evidence
from pipeline.evaluate.result_files import read_result
from transforms.taxonomy import imagenet9

if TYPE_CHECKING:
    from pipeline.display.plot import Plot


class TrendParts(Parts):
    """The parts of the trend, which needs the tables of the evaluation."""

    tables = TABLES
    figures = ("trend",)
    panels = (PANEL,)
    claims = CLAIMS

    def find(self, dataset: Dataset) -> Found:
        """Same as `Parts.find`."""
        trend = read_result(dataset.store, TREND_FILE, Trend)
        is_current = trend is not None and trend.dataset == dataset.manifest.fingerprint
        return Found(of_dataset=[trend] if is_current else [])

    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        """Same as `Parts.write`."""
        store = dataset.store
        if not store.exists("results/summary.csv"):
            return
        if not dataset.is_imagenet9:
            # Other classes than ImageNet-9's have no relation to accuracy on ImageNet.
            for path in (TREND_FILE, "results/trend.csv"):
                store.delete(path)
            return
        summaries, _ = read_summaries(dataset)
        measured = read_contributions(dataset, summaries)
        write_trend(store, dataset.manifest.fingerprint, summaries, imagenet9(), measured)

    def plots(self, evidence: Evidence) -> Iterator[Plot]:
        """Same as `Parts.plots`."""
        # Imported here, because Matplotlib is slow to import.
        from pipeline.analyses.imagenet.figures import make_plots

        return make_plots(evidence)


TREND_PARTS = TrendParts()
