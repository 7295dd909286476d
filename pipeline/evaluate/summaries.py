"""Summaries of models: all statistics of their predictions on a dataset.

The models of a matrix are summarized in `pipeline.analyses.matrix.results` instead.

Summaries are computed on demand and not stored, so they always describe the present dataset. If a
model was run on an earlier version of it, its summary covers the predictions that are still valid.
Only the rows of `power` are stored, in model.json, because they take longer to compute.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.comparisons import Pictures
from pipeline.evaluate.predictions import (
    PROBED_VARIANT,
    EvalImages,
    ModelPredictions,
    Predictions,
    gaps_of,
    paired_draws,
    read_predictions,
)
from pipeline.evaluate.results import pick, read_results
from pipeline.evaluate.summary import (
    Accuracy,
    AccuracyRow,
    ClassRow,
    ConfusionRow,
    DecompositionRow,
    Evaluated,
    FlipRow,
    GapRow,
    GroupRow,
    RuleRow,
    SensitivityRow,
    SizeRow,
    Summary,
)
from transforms.analysis import (
    KINDS,
    SIZE_EDGES,
    bg_gap,
    class_mean_accuracy,
    class_p_values,
    confusion_matrix,
    constant_accuracy,
    decompose,
    groups,
    relative_foreground_sensitivity,
    size_buckets,
    worst_group,
)
from transforms.flips import PicturePairs, flip_rate
from transforms.hashing import fingerprint
from transforms.intervals import CONFIDENCE, level_of
from transforms.taxonomy import OUTSIDE, Taxonomy
from transforms.two_way import Roles, wilson_of_pictures
from transforms.variants import ONLY_BG_T, ORIGINAL, VariantName, draws_of


def summary_rows(
    by_rule: Mapping[str, Predictions], images: EvalImages, taxonomy: Taxonomy
) -> dict[str, tuple[RuleRow, ...]]:
    """Computes the rows of each table of a `Summary`, except its power.

    The draws (replicates) of a mixed variant are pooled in one row. Rows without images are left
    out, except in two tables: `accuracy` has a row without an accuracy for each variant if there
    are no images, and `decomposition` has a row for each kind, even if no image is of this kind.
    """
    variants = [
        pooled
        for rule, predictions in by_rule.items()
        for pooled in _pool_draws(rule, predictions, images, taxonomy)
    ]
    return {
        table: tuple(row for pooled in variants for row in rows(pooled))
        for table, rows in _OF_VARIANTS.items()
    } | {
        table: tuple(
            row for rule, predictions in by_rule.items() for row in rows(rule, predictions, images)
        )
        for table, rows in _ACROSS_VARIANTS.items()
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _PooledDraws:
    """The predictions on all draws (replicates) of a variant under one rule, concatenated.

    Attributes:
      draws: number of draws.
      pictures: the p pictures that count.
      labels, predicted: (p,) int16, true and predicted labels.
      confusion: their `confusion_matrix`.
      bg_labels: (p,) int16, labels of the backgrounds of a mixed variant; None of others.
      fg_fractions: (p,) float64, share of the picture that the foreground covers, or NaN.
      names: names of the labels.
    """

    rule: str
    variant: str
    draws: int
    pictures: Pictures
    labels: NDArray[np.int16]
    predicted: NDArray[np.int16]
    confusion: NDArray[np.int64]
    bg_labels: NDArray[np.int16] | None
    fg_fractions: NDArray[np.float64]
    names: Sequence[str]

    @functools.cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is right, (p,) bool."""
        return np.asarray(self.predicted == self.labels)

    def accuracy(
        self, chosen: NDArray[np.bool_] | NDArray[np.int64], confidence: float = CONFIDENCE
    ) -> Accuracy:
        """Computes the accuracy, its interval, and the numbers of images and pictures.

        The pictures, which may share foregrounds or backgrounds, are chosen by a mask or positions.
        """
        correct, roles = self.correct[chosen], self.pictures.roles.select(chosen)
        pictures, hits = len(correct), int(correct.sum())
        low, high = wilson_of_pictures(correct, roles, confidence)
        return Accuracy(
            n=len(np.unique(self.pictures.images[chosen])),
            pictures=pictures,
            correct=hits,
            accuracy=hits / pictures if pictures else None,
            ci_low=low,
            ci_high=high,
        )


def _pool_draws(
    rule: str, predictions: Predictions, images: EvalImages, taxonomy: Taxonomy
) -> Iterator[_PooledDraws]:
    """Yields the pooled draws of each variant that has predictions."""
    for variant, draws in draws_of(predictions.predicted).items():
        pictures = Pictures.of(paired_draws(variant, draws), images, predictions.bg_units)
        labels = predictions.labels[pictures.images]
        predicted = pictures.of_variants(predictions.predicted)
        is_mixed = VariantName(variant).is_mixed
        yield _PooledDraws(
            rule=rule,
            variant=variant,
            draws=len(draws),
            pictures=pictures,
            labels=labels,
            predicted=predicted,
            confusion=confusion_matrix(labels, predicted, taxonomy.num_labels),
            bg_labels=pictures.of_variants(predictions.bg_labels) if is_mixed else None,
            fg_fractions=images.fg_fraction[pictures.images],
            names=taxonomy.names,
        )


def _accuracy(pooled: _PooledDraws) -> Iterator[AccuracyRow]:
    by_draw = [
        pooled.correct[pooled.pictures.draws == draw].mean()
        for draw in np.unique(pooled.pictures.draws)
    ]
    yield pick(
        AccuracyRow,
        pooled.accuracy(np.arange(len(pooled.labels))),
        label_rule=pooled.rule,
        variant=pooled.variant,
        chance=constant_accuracy(pooled.labels),
        replicates=pooled.draws,
        seed_sd=float(np.std(by_draw, ddof=1)) if len(by_draw) > 1 else None,
        class_mean_accuracy=class_mean_accuracy(pooled.confusion) if pooled.pictures.n else None,
        outside=int(pooled.confusion[:, -1].sum()),
    )


def _per_class(pooled: _PooledDraws) -> Iterator[ClassRow]:
    adjusted = class_p_values(pooled.labels, pooled.correct, pooled.pictures.roles)
    for label, row in enumerate(pooled.confusion):
        if row.any():
            yield pick(
                ClassRow,
                pooled.accuracy(pooled.labels == label),
                label_rule=pooled.rule,
                variant=pooled.variant,
                label=label,
                class_name=pooled.names[label],
                p_adjusted=adjusted.get(label),
                outside=int(row[-1]),
            )


def _confusion(pooled: _PooledDraws) -> Iterator[ConfusionRow]:
    for label, column in np.argwhere(pooled.confusion).tolist():
        yield ConfusionRow(
            label_rule=pooled.rule,
            variant=pooled.variant,
            label=label,
            prediction=OUTSIDE if column == len(pooled.names) else column,
            pictures=int(pooled.confusion[label, column]),
        )


def _groups(pooled: _PooledDraws) -> Iterator[GroupRow]:
    if pooled.bg_labels is None:
        return
    all_groups = groups(pooled.labels, pooled.bg_labels, len(pooled.names))
    accuracies = [pooled.accuracy(group.pictures) for group in all_groups]
    # A group has pictures, so that it has an accuracy.
    worst = worst_group(
        [(one.ci_low, one.ci_high) for one in accuracies],
        [one.accuracy or 0.0 for one in accuracies],
    )
    for position, (group, accuracy) in enumerate(zip(all_groups, accuracies, strict=True)):
        # The worst group is chosen after looking at all groups, so its interval is widened to hold
        # for all groups simultaneously.
        level = level_of(len(all_groups))
        widened = pooled.accuracy(group.pictures, level) if position == worst else None
        yield pick(
            GroupRow,
            accuracy,
            label_rule=pooled.rule,
            variant=pooled.variant,
            label=group.label,
            bg_label=group.bg_label,
            is_worst=widened is not None,
            worst_ci_low=widened.ci_low if widened else None,
            worst_ci_high=widened.ci_high if widened else None,
        )


def _sizes(pooled: _PooledDraws) -> Iterator[SizeRow]:
    # The size of the foreground is unknown for images that are not cut apart.
    is_unknown = np.isnan(pooled.fg_fractions)
    buckets = np.where(is_unknown, -1, size_buckets(pooled.fg_fractions))
    for bucket in np.unique(buckets[buckets >= 0]).tolist():
        low, high = SIZE_EDGES[bucket], SIZE_EDGES[bucket + 1]
        yield pick(
            SizeRow,
            pooled.accuracy(buckets == bucket),
            label_rule=pooled.rule,
            variant=pooled.variant,
            bucket=f"{low:g}-{high:g}",
            fg_low=low,
            fg_high=high,
        )


_OF_VARIANTS: dict[str, Callable[[_PooledDraws], Iterator[RuleRow]]] = {
    "accuracy": _accuracy,
    "per_class": _per_class,
    "confusion": _confusion,
    "groups": _groups,
    "sizes": _sizes,
}
"""Name of a table -> the function that yields its rows for one variant under one label rule."""


def _gaps(rule: str, predictions: Predictions, images: EvalImages) -> Iterator[GapRow]:
    for variant in gaps_of(predictions.predicted):
        draws = paired_draws(variant, predictions.predicted)
        pictures = Pictures.of(draws, images, predictions.bg_units)
        if not pictures.n:
            continue
        correct = pictures.of_variants(predictions.predicted) == predictions.labels[pictures.images]
        gap = bg_gap(correct, pictures.is_first, pictures.draws, pictures.roles)
        yield GapRow(
            label_rule=rule,
            variant=variant,
            gap=gap.gap,
            ci_low=gap.low,
            ci_high=gap.high,
            smallest_gap=gap.smallest,
            n=pictures.n,
            mixed_same=gap.mixed_same,
            mixed_rand=gap.mixed_rand,
            replicates=len(draws),
            seed_sd=gap.seed_sd,
            units=pictures.roles.units,
        )


def _flips(rule: str, predictions: Predictions, images: EvalImages) -> Iterator[FlipRow]:
    draws_by_variant = draws_of(predictions.predicted)
    drawn = [name for name in draws_by_variant if VariantName(name).has_draws]
    compared = [("mixed_same", "mixed_rand"), *((name, name) for name in drawn)]
    for variant, other in compared:
        draws, other_draws = draws_by_variant.get(variant, ()), draws_by_variant.get(other, ())
        named = (
            itertools.combinations(draws, 2)
            if variant == other
            else itertools.product(draws, other_draws)
        )
        names = list(dict.fromkeys((*draws, *other_draws)))
        draw_pairs = [(names.index(one), names.index(another)) for one, another in named]
        if not draw_pairs:
            continue
        bg_units = np.stack([predictions.bg_units[name] for name in names])
        counts = np.stack([images.counts(name, predictions.bg_units) for name in names])
        pairs = PicturePairs.from_units(images.unit_numbers, bg_units, counts, draw_pairs)
        flips = flip_rate(np.stack([predictions.predicted[name] for name in names]), pairs)
        if flips is not None:
            yield FlipRow(
                label_rule=rule,
                variant=variant,
                other_variant=other,
                flip_rate=flips.rate,
                ci_low=flips.low,
                ci_high=flips.high,
                n=flips.foregrounds,
                pairs=flips.pairs,
                replicates=len(draws),
                units=pairs.picture_roles.units,
            )


def _rfs(rule: str, predictions: Predictions, images: EvalImages) -> Iterator[SensitivityRow]:
    names = (VariantName("noise_fg"), VariantName("noise_bg"))
    if not len(images.keys) or not all(name in predictions.predicted for name in names):
        return
    noise_fg, noise_bg = (predictions.correct(name) for name in names)
    roles = Roles.from_units(images.unit_numbers)
    rfs, low, high = relative_foreground_sensitivity(noise_fg, noise_bg, roles) or (None,) * 3
    yield SensitivityRow(
        label_rule=rule,
        rfs=rfs,
        ci_low=low,
        ci_high=high,
        n=len(images.keys),
        noise_fg=float(noise_fg.mean()),
        noise_bg=float(noise_bg.mean()),
        units=roles.units,
    )


def _decomposition(
    rule: str, predictions: Predictions, images: EvalImages
) -> Iterator[DecompositionRow]:
    # As in the paper, each image belongs to exactly one kind, so only the first draw of mixed_rand
    # is used.
    needed = (ORIGINAL, VariantName("mixed_rand"), ONLY_BG_T)
    if not all(variant in predictions.predicted for variant in needed):
        return
    pictures = Pictures.of([needed[1:2]], images, predictions.bg_units)
    if not pictures.n:
        return
    kinds = decompose(*(predictions.correct(variant)[pictures.images] for variant in needed))
    for kind, n in zip(KINDS, np.bincount(kinds, minlength=len(KINDS)).tolist(), strict=True):
        low, high = wilson_of_pictures(kinds == KINDS.index(kind), pictures.roles)
        yield DecompositionRow(
            label_rule=rule,
            kind=kind,
            n=n,
            images=pictures.n,
            share=n / pictures.n,
            ci_low=low,
            ci_high=high,
        )


_ACROSS_VARIANTS: dict[str, Callable[[str, Predictions, EvalImages], Iterator[RuleRow]]] = {
    "gaps": _gaps,
    "flips": _flips,
    "rfs": _rfs,
    "decomposition": _decomposition,
}
"""Name of a table that compares variants -> the function that yields its rows under one rule."""


def read_summaries(dataset: Dataset) -> tuple[list[Summary], list[str]]:
    """Summarizes all models except those that were trained for a matrix, in order of their folders.

    They lack `power` if its variant is missing. Returned, too, are names of models that have
    complete valid predictions on no variant, or whose split is gone. The last result is cached,
    because the tables, the page and the closing lines of a job all need the same summaries.
    """
    summaries, stale = _summarize_models(dataset, _state(dataset))
    return list(summaries), list(stale)


def _state(dataset: Dataset) -> str:
    """Returns a fingerprint of the files that summaries are computed from, and of their places."""
    store = dataset.store
    files = [
        [file.path, file.size, file.identity]
        for place in (store.path("results"), *store.elsewhere.values())
        for file in store.files.walk(place)
        if file.path.endswith("/model.json") or "/predictions/" in file.path
    ]
    return fingerprint(sorted(store.elsewhere.items()), sorted(files))


@functools.lru_cache(maxsize=1)
def _summarize_models(dataset: Dataset, state: str) -> tuple[list[Summary], list[str]]:
    """Does the same as `read_summaries`; `state` tells the results on the dataset apart."""
    read_images = functools.cache(functools.partial(EvalImages.read, dataset))
    summaries, stale = [], []
    for run in read_results(dataset.store, "model", Evaluated):
        if run.matrix:
            continue
        if run.evaluation.split not in dataset.manifest.shards:
            stale.append(run.model)
            continue
        images = read_images(*run.tested_on)
        predictions = read_predictions(dataset, images, run)
        if not any(of_rule.predicted for of_rule in predictions.by_rule.values()):
            stale.append(run.model)
            continue
        summaries.append(summarize(dataset, run, images, predictions))
    return summaries, stale


def summarize(
    dataset: Dataset, run: Evaluated, images: EvalImages, predictions: ModelPredictions
) -> Summary:
    """Summarizes the predictions of one model."""
    device = "+".join(predictions.devices)
    return pick(
        Summary,
        run,
        dataset=dataset.manifest.fingerprint,
        evaluation=msgspec.structs.replace(run.evaluation, device=device),
        missing=tuple(map(str, predictions.missing)),
        unanswered=predictions.unanswered,
        label_rules=tuple(predictions.by_rule),
        power=() if PROBED_VARIANT in predictions.missing else run.power,
        **summary_rows(predictions.by_rule, images, dataset.taxonomy),
    )
