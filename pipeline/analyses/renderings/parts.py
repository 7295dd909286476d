"""The parts of the analysis of renderings."""

from collections.abc import Iterable, Iterator, Sequence

from typing_extensions import override

from pipeline.analyses.parts import Flags, Found, Parts
from pipeline.analyses.renderings.results import (
    PAIRS,
    RENDERINGS_TABLE,
    RenderingsResult,
    mean_of_models,
    read_renderings,
)
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset, open_named
from pipeline.display.panel import Panel
from pipeline.display.table import aligned, names_of, tabular
from pipeline.errors import UsageError, refuse_first, shown_bytes
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from pipeline.evaluate.results import OfModel, RunColumns, pick
from transforms.renderings import AGAINST
from transforms.taxonomy import Taxonomy
from transforms.variants import VariantName


def _shown(dataset: Dataset, results: Iterable[RenderingsResult]) -> list[RenderingsResult]:
    """Returns the results that have rows, and the mean of all models, if it can be computed."""
    shown = [one for one in results if one.rows]
    # In one order, whatever that of the page is, because the mean is cached.
    mean = mean_of_models(dataset, tuple(sorted(shown, key=lambda one: one.folder)))
    return [*shown, *([mean] if mean else [])]


def _panel(evidence: Evidence) -> list[tuple[str, RenderingsResult]]:
    """Returns (name, result) of each model, named and ordered as on the page, and of the mean."""
    names = {one: model.name for model, one in evidence.models_with(RenderingsResult)}
    return [(names.get(one, one.name), one) for one in _shown(evidence.dataset, names)]


class RenderingsFlags(Flags, frozen=True, kw_only=True):
    """The draws and renderings of `in9 method`, and the dataset to compare with."""

    replicates: int | None = None
    renderings: tuple[str, ...] = ()
    against: str | None = None


class RenderingsParts(Parts[RenderingsFlags]):
    flags = RenderingsFlags
    tables = (RENDERINGS_TABLE,)
    figures = ("method",)

    panels = (
        Panel(
            id="method",
            place=4,
            template="renderings/panel.html",
            title="Method",
            make=lambda evidence, _: _panel(evidence),
            answers="How BG-Gap changes with how pictures are made",
            command="in9 method --dataset . --models MODELS",
            needs_layers=True,
            needs_variants=tuple(map(VariantName, PAIRS)),
        ),
    )

    @override
    def plan(
        self,
        flags: RenderingsFlags,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> PlannedAnalysis | None:
        if flags.command != "method":
            return None
        from pipeline.analyses.renderings.stage import PlannedRenderings, renderings_config

        refuse_first(
            {
                "the method needs boxes and layers: imports have none": config.is_imported,
                **{
                    f"the method compares {' and '.join(PAIRS)}: no {name} here": (
                        name not in {each.base for each in config.compose.composed}
                    )
                    for name in PAIRS
                },
                # Such a dataset stores no rendering (`DatasetConfig`).
                "mixed_same_telea is not stored, and cannot be composed without layers: make it "
                "with --layers keep": config.layers == "drop",
            }
        )
        try:
            work = PlannedRenderings(
                evaluation,
                taxonomy,
                renderings_config(config.compose, flags.replicates, flags.renderings),
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        if flags.against is not None:
            own = Dataset.open(evaluation.store)
            there = open_named("--against", flags.against)
            other, subject = there.manifest.config, f"--against {there.store.root}: "
            refuse_first(
                {
                    "it is the dataset itself": (
                        there.manifest.fingerprint == own.manifest.fingerprint
                    ),
                    "it is an import, without layers": other.is_imported,
                    "it keeps images whole (--selection in9l)": other.segment.keeps_image_whole,
                    "it has no layers (--layers drop)": other.layers == "drop",
                    "it has other classes": there.taxonomy != taxonomy,
                    f"it has no split {evaluation.split}": evaluation.split not in other.split,
                    f"its pictures have {other.segment.image_size} pixels": (
                        other.segment.image_size != config.segment.image_size
                    ),
                },
                subject,
            )
            work.against = there.store
            images = work.composed(own).images
            refuse_first({"it has no image of this dataset": not images[AGAINST].keys}, subject)
            work.share = len(images[AGAINST].keys) / len(images[""].keys)
        return work

    @override
    def find(self, dataset: Dataset) -> Found:
        return Found(*read_renderings(dataset))

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        store, results = dataset.store, _shown(dataset, read_renderings(dataset)[0])
        if not results and not store.exists(f"results/{RENDERINGS_TABLE.name}.csv"):
            return
        RENDERINGS_TABLE.write(
            store,
            (
                [
                    OfModel(one.model),
                    row,
                    pick(RunColumns, one, one.evaluation, dataset=dataset.manifest.fingerprint),
                ]
                for one in results
                for row in one.rows
            ),
        )
        names = list(dict.fromkeys(name for one in results for name in one.headline))
        store.update(
            "results/latex/method.tex",
            shown_bytes(
                tabular(
                    "BG-Gap of the paper's method, and differences from it, in points; common, "
                    "against: BG-Gap; 95 % intervals; *: differs (Holm, 5 %)",
                    names,
                    names_of(results),
                    [
                        [row.cell if (row := one.headline.get(name)) else None for name in names]
                        for one in results
                    ],
                )
            ),
        )

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        results = _shown(dataset, read_renderings(dataset)[0]) if work else []
        names = list(dict.fromkeys(name for one in results for name in one.headline))
        if names:
            yield aligned(
                [
                    ["method: BG-Gap, differences", *names],
                    *(
                        [
                            one.name,
                            *(
                                str(row.cell) if (row := one.headline.get(name)) else "-"
                                for name in names
                            ),
                        ]
                        for one in results
                    ),
                ]
            )
        yield from filter(None, (one.against_text for one in results))


PARTS = RenderingsParts()
