"""What a summary says of a model, from its answers: accuracies, gaps, classes, groups, sizes.

Each part of a summary is a list of rows, which the tables (`pipeline.report.tables`) list for all
models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.answers import Answers, Images
from pipeline.evaluate.contributions import gap_draws, roles_of
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
    size_buckets,
    worst_group,
)
from transforms.intervals import level_of
from transforms.taxonomy import OUTSIDE, Taxonomy
from transforms.two_way import Roles, wilson_of_pictures
from transforms.variants import MIXED

Row = dict[str, Any]


def summary_parts(
    answers: Mapping[str, Answers], images: Images, taxonomy: Taxonomy
) -> dict[str, list[Row]]:
    """The rows of each part of a summary, as `pipeline.report.tables` lists them.

    Rows without images are left out, but for `accuracy`, where its values are None.
    """
    return {
        part: [
            {"label_rule": rule, **row}
            for rule, of_rule in answers.items()
            for row in rows(of_rule, images, taxonomy)
        ]
        for part, rows in _PARTS.items()
    }


def accuracy_columns(correct: NDArray[np.bool_], roles: Roles) -> Row:
    """Of (n,) answers to pictures, some of which share foregrounds or backgrounds."""
    n, hits = len(correct), int(correct.sum())
    low, high = wilson_of_pictures(correct, roles)
    return {
        "n": n,
        "correct": hits,
        "accuracy": hits / n if n else None,
        "ci_low": low,
        "ci_high": high,
    }


def _accuracy(answers: Answers, images: Images, taxonomy: Taxonomy) -> Iterator[Row]:
    for variant, predictions in answers.predictions.items():
        confusion = confusion_matrix(answers.labels, predictions, taxonomy.num_labels)
        yield {
            "variant": variant,
            **accuracy_columns(answers.correct(variant), roles_of(answers, images, [variant])),
            "chance": constant_accuracy(answers.labels),
            "class_mean_accuracy": class_mean_accuracy(confusion) if confusion.any() else None,
            "outside": int(confusion[:, -1].sum()),
        }


def _gaps(answers: Answers, images: Images, taxonomy: Taxonomy) -> Iterator[Row]:
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


def _per_class(answers: Answers, images: Images, taxonomy: Taxonomy) -> Iterator[Row]:
    for variant, predictions in answers.predictions.items():
        confusion = confusion_matrix(answers.labels, predictions, taxonomy.num_labels)
        correct, roles = answers.correct(variant), roles_of(answers, images, [variant])
        adjusted = class_p_values(answers.labels, correct, roles)
        for label, row in enumerate(confusion):
            if row.any():
                inside = answers.labels == label
                yield {
                    "variant": variant,
                    "label": label,
                    "class_name": taxonomy.names[label],
                    **accuracy_columns(correct[inside], roles.of_pictures(inside)),
                    "p_adjusted": adjusted.get(label),
                    "outside": int(row[-1]),
                }


def _confusion(answers: Answers, images: Images, taxonomy: Taxonomy) -> Iterator[Row]:
    outside = taxonomy.num_labels
    for variant, predictions in answers.predictions.items():
        confusion = confusion_matrix(answers.labels, predictions, taxonomy.num_labels)
        for label, column in np.argwhere(confusion).tolist():
            yield {
                "variant": variant,
                "label": label,
                "prediction": OUTSIDE if column == outside else column,
                "n": int(confusion[label, column]),
            }


def _decomposition(answers: Answers, images: Images, taxonomy: Taxonomy) -> Iterator[Row]:
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


def _groups(answers: Answers, images: Images, taxonomy: Taxonomy) -> Iterator[Row]:
    for variant in MIXED:
        names = answers.replicates(variant)
        if not names:
            continue
        found = groups(
            np.tile(answers.labels, len(names)),
            np.concatenate([answers.bg_labels[name] for name in names]),
            taxonomy.num_labels,
        )
        right = np.concatenate([answers.correct(name) for name in names])
        roles = roles_of(answers, images, names)
        parts = [(right[of.pictures], roles.of_pictures(of.pictures)) for of in found]
        rows = [
            {"label": of.label, "bg_label": of.bg_label, **accuracy_columns(*part)}
            for of, part in zip(found, parts, strict=True)
        ]
        worst = worst_group(
            [(row["ci_low"], row["ci_high"]) for row in rows], [row["accuracy"] for row in rows]
        )
        for position, row in enumerate(rows):
            low = high = None
            if position == worst:
                low, high = wilson_of_pictures(*parts[position], level_of(len(rows)))
            yield {
                "variant": variant,
                **row,
                "is_worst": position == worst,
                "worst_ci_low": low,
                "worst_ci_high": high,
            }


def _sizes(answers: Answers, images: Images, taxonomy: Taxonomy) -> Iterator[Row]:
    # Of images that are not cut apart nobody knows how large the foreground is.
    known = ~np.isnan(images.fg_fraction)
    buckets = size_buckets(images.fg_fraction[known])
    for variant in answers.predictions:
        correct = answers.correct(variant)[known]
        roles = roles_of(answers, images, [variant]).of_pictures(known)
        for bucket in np.unique(buckets).tolist():
            low, high = SIZE_EDGES[bucket], SIZE_EDGES[bucket + 1]
            inside = buckets == bucket
            yield {
                "variant": variant,
                "bucket": f"{low:g}-{high:g}",
                "fg_low": low,
                "fg_high": high,
                **accuracy_columns(correct[inside], roles.of_pictures(inside)),
            }


_PARTS: dict[str, Callable[[Answers, Images, Taxonomy], Iterator[Row]]] = {
    "accuracy": _accuracy,
    "gaps": _gaps,
    "per_class": _per_class,
    "confusion": _confusion,
    "decomposition": _decomposition,
    "groups": _groups,
    "sizes": _sizes,
}
