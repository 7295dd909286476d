"""What a summary says of a model, from its answers: accuracies, gaps, classes, groups, sizes.

Each part of a summary is a list of rows, which the tables (`pipeline.report.tables`) list for all
models.

Summaries: what the predictions of each model say of the dataset as it is; those of rows of the
matrix say it there (`pipeline.analyses.matrix.matrix_results`).

They are made when they are asked for, and stored nowhere: of a model that was run on an earlier
state of the dataset, they hold what is still true.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.background_logits import PROBED
from pipeline.evaluate.contributions import gap_draws, roles_of
from pipeline.evaluate.predictions import EvalImages, Predictions, read_predictions
from pipeline.evaluate.result_files import read_results, tested_part
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
from transforms.intervals import level_of
from transforms.taxonomy import OUTSIDE, Taxonomy
from transforms.two_way import Roles, wilson_of_pictures
from transforms.variants import EXTERNAL, MIXED, draws_of

Row = dict[str, Any]


def summary_parts(
    answers: Mapping[str, Predictions], images: EvalImages, taxonomy: Taxonomy
) -> dict[str, list[Row]]:
    """The rows of each part of a summary, as `pipeline.report.tables` lists them.

    A mixed variant's row is of all its draws. Rows without images are left out, but for `accuracy`,
    where its values are None.
    """
    return {
        part: [
            {"label_rule": rule, **row}
            for rule, of_rule in answers.items()
            for row in rows(of_rule, images, taxonomy)
        ]
        for part, rows in _PARTS.items()
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Shown:
    """A variant, all of its draws one after the other: n images in p pictures.

    Attributes:
      variant: its name.
      draws: the names of its draws.
      images: (p,) int64, the image of each picture's foreground.
      labels, predictions: (p,) int16.
      roles: of the pictures.
    """

    variant: str
    draws: tuple[str, ...]
    images: NDArray[np.int64]
    labels: NDArray[np.int16]
    predictions: NDArray[np.int16]
    roles: Roles

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(p,) whether each prediction is right."""
        return np.asarray(self.predictions == self.labels)

    def accuracy(self, chosen: NDArray[np.bool_] | NDArray[np.int64] | None = None) -> Row:
        """The columns of the accuracy on all pictures, or on some, by a mask or by positions."""
        if chosen is None:
            return accuracy_columns(self.correct, self.roles, self.images)
        roles = self.roles.select(chosen)
        return accuracy_columns(self.correct[chosen], roles, self.images[chosen])


def _shown(answers: Predictions, images: EvalImages) -> Iterator[_Shown]:
    """The variants that there are answers on."""
    for variant, draws in draws_of(answers.predictions).items():
        yield _Shown(
            variant=variant,
            draws=draws,
            images=np.tile(np.arange(len(answers.labels)), len(draws)),
            labels=np.tile(answers.labels, len(draws)),
            predictions=np.concatenate([answers.predictions[name] for name in draws]),
            roles=roles_of(answers, images, draws),
        )


def accuracy_columns(correct: NDArray[np.bool_], roles: Roles, images: NDArray[np.integer]) -> Row:
    """Describes an accuracy.

    Args:
      correct: (p,) answers to pictures, some of which share foregrounds or backgrounds.
      roles: of the pictures.
      images: (p,) numbers that tell apart the images whose foregrounds they show.
    """
    pictures, hits = len(correct), int(correct.sum())
    low, high = wilson_of_pictures(correct, roles)
    return {
        "n": len(np.unique(images)),
        "pictures": pictures,
        "correct": hits,
        "accuracy": hits / pictures if pictures else None,
        "ci_low": low,
        "ci_high": high,
    }


def _accuracy(answers: Predictions, images: EvalImages, taxonomy: Taxonomy) -> Iterator[Row]:
    for shown in _shown(answers, images):
        confusion = confusion_matrix(shown.labels, shown.predictions, taxonomy.num_labels)
        by_draw = [answers.correct(name).mean() for name in shown.draws if len(shown.labels)]
        yield {
            "variant": shown.variant,
            **shown.accuracy(),
            "chance": constant_accuracy(shown.labels),
            "replicates": len(shown.draws),
            "seed_sd": float(np.std(by_draw, ddof=1)) if len(by_draw) > 1 else None,
            "class_mean_accuracy": class_mean_accuracy(confusion) if confusion.any() else None,
            "outside": int(confusion[:, -1].sum()),
        }


def _gaps(answers: Predictions, images: EvalImages, taxonomy: Taxonomy) -> Iterator[Row]:
    names = gap_draws(answers.predictions)
    if not all(names) or not len(images.keys):
        return
    same, rand = (np.stack([answers.correct(name) for name in of]) for of in names)
    gap = bg_gap(same, rand, roles_of(answers, images, [*names[0], *names[1]]))
    yield {
        "gap": gap.gap,
        "ci_low": gap.low,
        "ci_high": gap.high,
        "n": len(images.keys),
        "mixed_same": gap.mixed_same,
        "mixed_rand": gap.mixed_rand,
        "replicates": len(same),
        "seed_sd": gap.seed_sd,
        "units": images.unit_count,
    }


def _flips(answers: Predictions, images: EvalImages, taxonomy: Taxonomy) -> Iterator[Row]:
    compared = [("mixed_same", "mixed_rand"), *((name, name) for name in (*MIXED, EXTERNAL))]
    of_variant = draws_of(answers.predictions)
    for variant, other in compared:
        names, others = of_variant.get(variant, ()), of_variant.get(other, ())
        if variant == other:
            drawn, draws = names, list(itertools.combinations(range(len(names)), 2))
        else:
            drawn = names + others
            draws = list(itertools.product(range(len(names)), range(len(names), len(drawn))))
        if not draws:
            continue
        grounds = np.stack([answers.bg_units[name] for name in drawn])
        pairs = PicturePairs.from_units(images.unit_numbers, grounds, draws)
        found = flip_rate(np.stack([answers.predictions[name] for name in drawn]), pairs)
        if found is not None:
            yield {
                "variant": variant,
                "other_variant": other,
                "flip_rate": found.rate,
                "ci_low": found.low,
                "ci_high": found.high,
                "n": found.foregrounds,
                "pairs": found.pairs,
                "replicates": len(names),
                "units": images.unit_count,
            }


def _rfs(answers: Predictions, images: EvalImages, taxonomy: Taxonomy) -> Iterator[Row]:
    names = ("noise_fg", "noise_bg")
    if not len(images.keys) or not all(name in answers.predictions for name in names):
        return
    noise_fg, noise_bg = (answers.correct(name) for name in names)
    roles = Roles.from_units(images.unit_numbers)
    found = relative_foreground_sensitivity(noise_fg, noise_bg, roles)
    rfs, low, high = found or (None, None, None)
    yield {
        "rfs": rfs,
        "ci_low": low,
        "ci_high": high,
        "n": len(images.keys),
        "noise_fg": float(noise_fg.mean()),
        "noise_bg": float(noise_bg.mean()),
        "units": images.unit_count,
    }


def _per_class(answers: Predictions, images: EvalImages, taxonomy: Taxonomy) -> Iterator[Row]:
    for shown in _shown(answers, images):
        confusion = confusion_matrix(shown.labels, shown.predictions, taxonomy.num_labels)
        adjusted = class_p_values(shown.labels, shown.correct, shown.roles)
        for label, row in enumerate(confusion):
            if row.any():
                yield {
                    "variant": shown.variant,
                    "label": label,
                    "class_name": taxonomy.names[label],
                    **shown.accuracy(shown.labels == label),
                    "p_adjusted": adjusted.get(label),
                    "outside": int(row[-1]),
                }


def _confusion(answers: Predictions, images: EvalImages, taxonomy: Taxonomy) -> Iterator[Row]:
    outside = taxonomy.num_labels
    for shown in _shown(answers, images):
        confusion = confusion_matrix(shown.labels, shown.predictions, taxonomy.num_labels)
        for label, column in np.argwhere(confusion).tolist():
            yield {
                "variant": shown.variant,
                "label": label,
                "prediction": OUTSIDE if column == outside else column,
                "pictures": int(confusion[label, column]),
            }


def _decomposition(answers: Predictions, images: EvalImages, taxonomy: Taxonomy) -> Iterator[Row]:
    # The first replicate of mixed_rand, as in the paper: one kind for each image.
    needed = ("original", "mixed_rand", "only_bg_t")
    total = len(images.keys)
    if not total or not all(variant in answers.predictions for variant in needed):
        return
    kinds = decompose(*(answers.correct(variant) for variant in needed))
    roles = roles_of(answers, images, ["mixed_rand"])
    for kind, n in zip(KINDS, np.bincount(kinds, minlength=len(KINDS)).tolist(), strict=True):
        low, high = wilson_of_pictures(kinds == KINDS.index(kind), roles)
        share = n / total
        yield {
            "kind": kind,
            "n": n,
            "images": total,
            "share": share,
            "ci_low": low,
            "ci_high": high,
        }


def _groups(answers: Predictions, images: EvalImages, taxonomy: Taxonomy) -> Iterator[Row]:
    for shown in _shown(answers, images):
        if shown.variant not in MIXED:
            continue
        bg_labels = np.concatenate([answers.bg_labels[name] for name in shown.draws])
        found = groups(shown.labels, bg_labels, taxonomy.num_labels)
        rows = [
            {"label": of.label, "bg_label": of.bg_label, **shown.accuracy(of.pictures)}
            for of in found
        ]
        worst = worst_group(
            [(row["ci_low"], row["ci_high"]) for row in rows], [row["accuracy"] for row in rows]
        )
        for position, row in enumerate(rows):
            low = high = None
            if position == worst:
                # Chosen among all of them: the interval holds for each of them at once.
                chosen = found[position].pictures
                roles = shown.roles.select(chosen)
                low, high = wilson_of_pictures(shown.correct[chosen], roles, level_of(len(rows)))
            yield {
                "variant": shown.variant,
                **row,
                "is_worst": position == worst,
                "worst_ci_low": low,
                "worst_ci_high": high,
            }


def _sizes(answers: Predictions, images: EvalImages, taxonomy: Taxonomy) -> Iterator[Row]:
    # Of images that are not cut apart nobody knows how large the foreground is.
    known = ~np.isnan(images.fg_fraction)
    buckets = np.full(len(known), -1, np.int64)
    buckets[known] = size_buckets(images.fg_fraction[known])
    for shown in _shown(answers, images):
        for bucket in np.unique(buckets[known]).tolist():
            low, high = SIZE_EDGES[bucket], SIZE_EDGES[bucket + 1]
            yield {
                "variant": shown.variant,
                "bucket": f"{low:g}-{high:g}",
                "fg_low": low,
                "fg_high": high,
                **shown.accuracy(buckets[shown.images] == bucket),
            }


_PARTS: dict[str, Callable[[Predictions, EvalImages, Taxonomy], Iterator[Row]]] = {
    "accuracy": _accuracy,
    "gaps": _gaps,
    "flips": _flips,
    "rfs": _rfs,
    "per_class": _per_class,
    "confusion": _confusion,
    "decomposition": _decomposition,
    "groups": _groups,
    "sizes": _sizes,
}


def read_summaries(dataset: Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    """Summaries of all models that are no rows of a matrix, in order of their folder.

    Those that were made last are kept: tables, page and closing words of one job ask for the same.

    Returns:
      (what model.json says of each, with the dataset's fingerprint, the rows of each part of
      `summary_parts`, and `missing`: the variants that it has no predictions of; names of models
      none of whose predictions are of the dataset as it is).
    """
    state = _state(dataset)
    if state not in _made_last:
        _made_last.clear()
        _made_last[state] = _make(dataset)
    summaries, stale = _made_last[state]
    return list(summaries), list(stale)


_made_last: dict[str, tuple[list[dict[str, Any]], list[str]]] = {}


def _state(dataset: Dataset) -> str:
    """What changes when summaries do: the dataset, and the files that they are made of."""
    store = dataset.store
    files = [
        [file.path, file.size, file.identity]
        for file in store.files.walk(store.path("results"))
        if file.path.endswith("/model.json") or "/predictions/" in file.path
    ]
    return fingerprint(store.root, dataset.manifest.fingerprint, sorted(files))


def _make(dataset: Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    images: dict[tuple[str, float], EvalImages] = {}
    summaries, stale = [], []
    for metadata in read_results(dataset.store, "model"):
        if "matrix" in metadata:
            continue
        part = tested_part(metadata)
        if part[0] not in dataset.manifest.shards:
            stale.append(metadata["model"])
            continue
        if part not in images:
            images[part] = EvalImages.read(dataset, *part)
        answers = read_predictions(dataset, images[part], metadata)
        if all(not of_rule.predictions for of_rule in answers.by_rule.values()):
            stale.append(metadata["model"])
            continue
        summaries.append(
            {
                **metadata,
                "dataset": dataset.manifest.fingerprint,
                "evaluation": {**metadata["evaluation"], "device": "+".join(answers.devices)},
                "missing": answers.missing,
                **summary_parts(answers.by_rule, images[part], dataset.taxonomy),
                "power": [] if PROBED in answers.missing else metadata["power"],
            }
        )
    return summaries, stale
