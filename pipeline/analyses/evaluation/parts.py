"""The parts of the evaluation, its stage, and what changed between two states of a dataset.

Accuracies of two states are compared over the images that both states have.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from typing_extensions import override

from pipeline.analyses.evaluation.baseline import BASELINE
from pipeline.analyses.evaluation.images import IMAGES
from pipeline.analyses.evaluation.panel import ACCURACY, CLAIMS, MISTAKES, SENSITIVITY
from pipeline.analyses.evaluation.tables import (
    HEADLINE,
    describe_stale,
    describe_summaries,
    measure_power,
    write_evaluation_tables,
)
from pipeline.analyses.parts import Changed, Flags, Found, Parts
from pipeline.dataset.card import markdown
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import read_manifest
from pipeline.errors import JobError
from pipeline.evaluate.comparisons import (
    COMPARISONS,
    ModelsOnSameImages,
    Sample,
    on_same_images,
)
from pipeline.evaluate.families import FAMILIES, Subject, families_of
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from pipeline.evaluate.predict_shards import PredictShards, commit_predictions
from pipeline.evaluate.predictions import (
    EvalImages,
    evaluated_variants,
    gaps_of,
    paired_draws,
    read_predictions,
)
from pipeline.evaluate.results import ModelRun, errors_by_model, read_failures
from pipeline.evaluate.subjects import column_of
from pipeline.evaluate.summaries import read_summaries
from pipeline.evaluate.summary import TABLES, Summary
from transforms.intervals import Floats, bootstrap_interval
from transforms.taxonomy import Taxonomy
from transforms.variants import BG_GAP, VariantName, draws_of


@dataclasses.dataclass(eq=False)
class PlannedEvaluation(PlannedAnalysis):
    """The stage that predicts all pictures of output shards, for tables of accuracy and BG-Gap."""

    stage = "evaluate"
    refuses_overlap = True
    needs_network = False

    @override
    def size(self, dataset: Dataset, chunk: int) -> int:
        if not self.evaluation.holdout:
            return dataset.pictures(self.evaluation.split, chunk)
        return len(self.evaluation.rows(dataset, chunk)) * len(evaluated_variants(dataset))

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> PredictShards:
        return PredictShards(dataset, run)

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        """Writes model.json; raises JobError if predictions do not fit the dataset."""
        store, shards = dataset.store, PredictShards(dataset, run)
        images = EvalImages.read(dataset, *run.tested_on)
        missing = read_predictions(dataset, images, run).missing
        if missing:
            raise JobError(
                f"the files in {store.path(f'results/{run.folder}/predictions')} do not fit the "
                f"dataset: the predictions on {missing[0]} are of other images. Remove that "
                "folder and evaluate the model again"
            )
        commit_predictions(
            shards,
            self.chunks(dataset),
            run,
            entry=entry,
            power=measure_power(dataset, images, run),
        )


class EvaluationParts(Parts[Flags]):
    flags = Flags
    tables = (*TABLES, FAMILIES, COMPARISONS, BASELINE)
    figures = ("gaps", "classes", "decomposition", "sizes-", "confusion-", "groups-")
    panels = (IMAGES, ACCURACY, SENSITIVITY, MISTAKES)
    claims = CLAIMS

    @override
    def plan(
        self,
        flags: Flags,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> PlannedAnalysis | None:
        if flags.command not in ("run", "evaluate"):
            return None
        return PlannedEvaluation(evaluation, taxonomy)

    @override
    def expected_pictures(
        self, work: PlannedAnalysis, images: float, variants: Sequence[VariantName]
    ) -> int | None:
        return round(images * sum(name.is_picture for name in variants))

    @override
    def dry_run_lines(
        self, work: PlannedAnalysis, sample: Sample, variants: Sequence[VariantName]
    ) -> Iterator[str]:
        """Yields the smallest BG-Gap that the dataset would show, if it has one."""
        evaluation, manifest = work.evaluation, read_manifest(work.evaluation.store)
        sample = sample.with_pairs(evaluation.holdout, variants)
        if sample.images < 2 or not gaps_of(variants):
            return
        stored = read_summaries(Dataset(evaluation.store, manifest))[0] if manifest else []
        known = [
            (
                f" of {summary.name}, by its results,",
                gap.smallest_gap * (gap.n / sample.images) ** 0.5,
            )
            for summary in stored
            if summary.is_of(evaluation.entries, evaluation.settings) and (gap := summary.gap())
        ]
        if len(known) < len(evaluation.entries):
            known.append(("", sample.smallest()))
        for of, smallest in known:
            size = f"below about {100 * smallest:.1f} points" if smallest < 1 else "of any size"
            yield f"gaps{of} {size} will often be missed with {sample}"

    @override
    def find(self, dataset: Dataset) -> Found:
        return Found(*read_summaries(dataset))

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        write_evaluation_tables(dataset, columns or HEADLINE)

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        summaries, stale = read_summaries(dataset)
        if work:
            yield from describe_summaries(dataset, summaries)
        yield from (
            f"missing: {summary.name} on {', '.join(summary.missing)}; evaluate it again: "
            f"--models {summary.entry}"
            for summary in summaries
            if summary.missing
        )
        yield from describe_stale(dataset, stale)

    @override
    def monitored(self, dataset: Dataset, work: PlannedAnalysis) -> dict[str, object]:
        """Returns figures of the job's models, and errors of failed ones."""
        entries, settings = work.evaluation.entries, work.evaluation.settings
        failed, _ = read_failures(dataset.store, dataset.manifest.fingerprint, work.stage)
        return {
            "models": {
                summary.name: _figures(summary)
                for summary in read_summaries(dataset)[0]
                if summary.is_of(entries, settings)
            },
            "failed": errors_by_model(failed, entries),
        }

    @override
    def changes(self, before: Dataset, after: Dataset, causes: Sequence[str]) -> Changed | None:
        return describe_models(*compare_accuracies(before, after, causes))


def _figures(summary: Summary) -> dict[str, float]:
    """Returns BG-Gap and accuracy on `original` by the headline's label rule, where measured."""
    gap = summary.gap()
    estimates = {"original": summary.estimate("original"), BG_GAP: gap.estimate if gap else None}
    return {name: round(one[0], 6) for name, one in estimates.items() if one}


class AccuracyChange(NamedTuple):
    """Difference of the accuracies on `variant`, or of gaps (`bg_gap`): after minus before.

    It lies in -1 to 1, over the images that both states have, with the 95 % interval of a paired
    bootstrap.
    """

    variant: str
    difference: float
    ci_low: float
    ci_high: float


@dataclasses.dataclass(frozen=True)
class ModelChange:
    """Differences of a model that was evaluated in both states, or of a family of such models."""

    model: str
    causes: Sequence[str]
    n: int
    label_rule: str
    rows: Sequence[AccuracyChange]


def _model_causes(before: Summary, after: Summary) -> list[str]:
    """Names what differs between two evaluations of a model, apart from the dataset.

    The names are `weights`, `evaluation` (flags, device, preprocessing) and `code` (version of the
    stage).
    """
    differs = {
        "weights": before.weights_sha256 != after.weights_sha256,
        "evaluation": (before.preprocessing, before.evaluation)
        != (after.preprocessing, after.evaluation),
        "code": before.evaluate_version != after.evaluate_version,
    }
    return [cause for cause, is_one in differs.items() if is_one]


def compare_accuracies(
    before: Dataset, after: Dataset, dataset_causes: Sequence[str]
) -> tuple[list[ModelChange], list[str]]:
    """Compares the accuracies of models, and means of families, in two states of a dataset.

    Models that were evaluated only in the second are returned apart, by name. The mean of a family
    is over its seeds in both states.
    """
    models: list[ModelChange] = []
    earlier = {summary.folder: summary for summary in read_summaries(before)[0]}
    summaries, _ = read_summaries(after)
    subjects: list[Subject] = [*families_of(summaries)[0], *summaries]
    for subject in subjects:
        now = [one for one in subject.members if one.folder in earlier]
        was = [earlier[one.folder] for one in now]
        if len(now) > subject.is_family:
            n, rows = _differences(before, was, after, now)
            of_models = (one for pair in zip(was, now, strict=True) for one in _model_causes(*pair))
            causes = list(dict.fromkeys([*dataset_causes, *of_models]))
            name = subject.name + f" (mean of {len(now)} trainings)" * subject.is_family
            models.append(ModelChange(name, causes, n, subject.headline, rows))
    return models, [one.name for one in summaries if one.folder not in earlier]


def describe_models(models: Sequence[ModelChange], new_models: Sequence[str]) -> Changed:
    """Describes what `compare_accuracies` returns."""
    short = [
        f"{markdown(column_of(row.variant))} of {markdown(model.model)}: {_difference(row)} "
        f"({_causes(model)})"
        for model in models
        for row in model.rows
        if row.variant.startswith(BG_GAP)
    ]
    if new_models:
        short.append(f"new models: {', '.join(map(markdown, new_models))}")
    # A model may lack BG-Gap, but differ in other accuracies.
    is_same = not any(row.difference for model in models for row in model.rows)
    return Changed(short, "accuracies" if is_same else "BG-Gap", list(_change_lines(models)))


def _change_lines(models: Sequence[ModelChange]) -> Iterator[str]:
    if models:
        yield from ("", "## Accuracies")
    names = dict.fromkeys(row.variant for model in models for row in model.rows)
    variants = [name for name in names if name != BG_GAP]
    for rule in dict.fromkeys(model.label_rule for model in models):
        yield from (
            "",
            "Differences in percentage points over the n images in both versions, with 95 % "
            f"intervals of a paired bootstrap, under {rule}.",
            "",
            "| model | cause | n | "
            + " | ".join(markdown(column_of(name)) for name in (*variants, BG_GAP))
            + " |",
            "|---|---|--:|" + "--:|" * (len(variants) + 1),
        )
        for model in (one for one in models if one.label_rule == rule):
            rows = {row.variant: row for row in model.rows}
            cells = [
                _difference(rows[name]) if name in rows else "-" for name in (*variants, BG_GAP)
            ]
            yield (
                f"| {markdown(model.model)} | {_causes(model)} | {model.n} | {' | '.join(cells)} |"
            )


def _causes(model: ModelChange) -> str:
    return ", ".join(model.causes) or "cause unknown"


def _difference(row: AccuracyChange) -> str:
    """Formats a difference in percentage points, such as `+0.4 [-0.2, 1.0]`."""
    # Adding zero turns a rounded -0.0 into 0.0.
    value, low, high = (
        round(100 * number, 1) + 0.0 for number in (row.difference, row.ci_low, row.ci_high)
    )
    return f"{value:+.1f} [{low:.1f}, {high:.1f}]" if value else f"0.0 [{low:.1f}, {high:.1f}]"


def _differences(
    before: Dataset, was: Sequence[Summary], after: Dataset, now: Sequence[Summary]
) -> tuple[int, list[AccuracyChange]]:
    """Returns the number of images in both states, and a row for each variant in both.

    Values are means over the models.
    """
    measured = [*on_same_images(before, was), *on_same_images(after, now)]
    if len(measured) < 2:
        return 0, []
    old_images, new_images = (models.images for models in measured)
    old, new = (_values(models, now[0].headline) for models in measured)
    positions = old_images.positions(new_images.keys)
    shared = np.flatnonzero(positions >= 0)
    changes = {
        name: new[name][shared] - old[name][positions[shared]] for name in new if name in old
    }
    changes = {name: change for name, change in changes.items() if not np.isnan(change).all()}
    if not changes:
        return 0, []
    table = np.column_stack([*changes.values()])
    low, high = bootstrap_interval(table, [new_images.units[i] for i in shared])
    columns = (np.nanmean(table, axis=0).tolist(), low.tolist(), high.tolist())
    return len(shared), [AccuracyChange(*row) for row in zip(changes, *columns, strict=True)]


def _values(models: ModelsOnSameImages, rule: str) -> dict[str, Floats]:
    """Computes for each variant, and for each gap, an array with a value for each image.

    The value is the share of the image's draws that the models classified correctly, or the gap
    between two such shares. Pictures that do not count are left out; it is NaN if none of them do.
    """
    answers = [one.get(rule, {}) for one in models.correct]
    known = [name for name in models.variants if all(name in one for one in answers)]
    right = {
        name: np.where(
            models.images.counts(name, models.bg_units),
            np.mean([one[name] for one in answers], axis=0),
            np.nan,
        )
        for name in known
    }
    by_draw = {variant: [right[name] for name in of] for variant, of in draws_of(known).items()}
    for gap in gaps_of(known):
        by_draw[gap] = [right[one] - right[other] for one, other in paired_draws(gap, known)]
    return {
        quantity: np.ma.masked_invalid(draws).mean(axis=0).filled(np.nan)
        for quantity, draws in by_draw.items()
        if draws
    }


PARTS = EvaluationParts()
