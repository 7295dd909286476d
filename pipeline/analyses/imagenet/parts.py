"""The parts of the accuracy on ImageNet, and those of the trend.

The trend is accuracy on the versions against accuracy on ImageNet, with the authors' claims about
better models.
"""

from collections.abc import Callable, Iterator, Sequence

from typing_extensions import override

from pipeline.analyses.imagenet.results import (
    TREND_FILE,
    TREND_TABLE,
    Trend,
    describe_imagenet,
    read_trend,
    write_trend,
)
from pipeline.analyses.parts import Flags, Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.panel import Claim, Measurement, Panel, differences
from pipeline.errors import UsageError
from pipeline.evaluate.comparisons import read_contributions
from pipeline.evaluate.evidence import Results
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from pipeline.evaluate.results import read_result
from pipeline.evaluate.summaries import read_summaries
from transforms.intervals import above, below
from transforms.taxonomy import Taxonomy, imagenet9

COMMAND = "in9 evaluate --dataset . --models MODELS --imagenet IMAGENET"
AT_LEAST_FIVE = "at least five models, better ten, whose accuracy on ImageNet is known or measured"


def slopes(*variants: str) -> Callable[[Results], list[Measurement]]:
    """Returns a function that finds slopes, against ImageNet accuracy, of variants or BG-Gap."""
    return lambda results: [
        Measurement(line.variant, (line.slope, line.slope_low, line.slope_high))
        for trend in results.get(Trend)
        for variant in variants
        for line in trend.lines
        if line.variant == variant
    ]


class ImageNetFlags(Flags, frozen=True, kw_only=True):
    """The folder of ImageNet; None to measure nothing on it."""

    imagenet: str | None = None


class ImageNetParts(Parts[ImageNetFlags]):
    """The parts of the accuracy on ImageNet. Its results are shown by the trend."""

    flags = ImageNetFlags

    @override
    def plan(
        self,
        flags: ImageNetFlags,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> PlannedAnalysis | None:
        if flags.imagenet is None:
            return None
        if config.taxonomy is not None:
            raise UsageError(
                "--imagenet is for the trend of ImageNet-9, but this dataset has another taxonomy; "
                "leave it out"
            )
        from pipeline.analyses.imagenet.stage import SPLIT, PlannedImageNet
        from pipeline.inputs.imagenet import find_images

        # Raises UsageError if there are no images.
        find_images(flags.imagenet, SPLIT, "--imagenet")
        return PlannedImageNet(evaluation, flags.imagenet, taxonomy)

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        if work:
            fingerprint, entries = dataset.manifest.fingerprint, work.evaluation.entries
            yield describe_imagenet(dataset.store, fingerprint, read_summaries(dataset)[0], entries)


PARTS = ImageNetParts()


class TrendParts(Parts[Flags]):
    """The parts of the trend, which needs the tables of the evaluation."""

    flags = Flags
    tables = (TREND_TABLE,)
    figures = ("trend",)
    panels = (
        # The section needs ImageNet-9, because the published trend is about its classes.
        Panel(
            id="trend",
            place=7,
            template="imagenet/panel.html",
            title="Trend",
            make=lambda evidence, _: read_trend(evidence),
            answers="Whether better models are less fooled",
            command=COMMAND,
            needs=AT_LEAST_FIVE,
            needs_imagenet9=True,
        ),
    )
    claims = (
        Claim(
            "Better models on ImageNet are better on all of the synthetic datasets.",
            (5, 1),
            "blog 5, paper figure 8",
            "all lines rise",
            "slopes above 0",
            slopes("mixed_same", "mixed_rand", "mixed_next", "no_fg"),
            above,
            COMMAND,
            of="lines",
            unit="slope",
            needs=AT_LEAST_FIVE,
        ),
        Claim(
            "Models do improve at using backgrounds: accuracy on only_bg_t rises, too.",
            (5, 2),
            "blog 5, paper figure 8",
            "the line rises",
            "slope above 0",
            slopes("only_bg_t"),
            above,
            COMMAND,
            of="lines",
            unit="slope",
            needs=AT_LEAST_FIVE,
        ),
        Claim(
            "Accuracy on backgrounds alone improves slower than where the background misleads.",
            (5, 3),
            "blog 5",
            "a flatter line",
            "difference of the slopes above 0",
            # Where the background misleads, compared with backgrounds alone.
            lambda results: differences(
                slopes("mixed_rand", "mixed_next")(results), slopes("only_bg_t")(results)
            ),
            above,
            COMMAND,
            of="lines",
            unit="slope",
            needs=AT_LEAST_FIVE,
        ),
        Claim(
            "BG-Gap trends towards closing.",
            (5, 4),
            "blog 5",
            "the line falls",
            "slope below 0",
            slopes("bg_gap"),
            below,
            COMMAND,
            of="lines",
            unit="slope",
            needs=AT_LEAST_FIVE,
        ),
    )

    @override
    def find(self, dataset: Dataset) -> Found:
        trend = read_result(dataset.store, TREND_FILE, Trend)
        is_current = trend is not None and trend.dataset == dataset.manifest.fingerprint
        return Found(of_dataset=[trend] if is_current else [])

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        store = dataset.store
        if not store.exists("results/summary.csv"):
            return
        if not dataset.is_imagenet9:
            # Other classes than ImageNet-9's have no relation to accuracy on ImageNet.
            store.delete_all([TREND_FILE, "results/trend.csv"])
            return
        summaries, _ = read_summaries(dataset)
        write_trend(
            store,
            dataset.manifest.fingerprint,
            summaries,
            imagenet9(),
            read_contributions(dataset, summaries),
        )


TREND_PARTS = TrendParts()
