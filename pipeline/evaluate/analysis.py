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
from transforms.analysis import (
    KINDS,
    SIZE_EDGES,
    bg_gap,
    class_mean_accuracy,
    confusion_matrix,
    decompose,
    groups,
    size_buckets,
    worst_group,
)
from transforms.intervals import wilson_of_groups, wilson_of_units
from transforms.taxonomy import OUTSIDE, Taxonomy
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


def _accuracy_columns(correct: NDArray[np.bool_], units: NDArray[np.int64] | None) -> Row:
    """Of (n,) answers, where those of images of one group are related."""
    n, hits = len(correct), int(correct.sum())
    low, high = wilson_of_groups(correct, units)
    return {
        "n": n,
        "correct": hits,
        "accuracy": hits / n if n else None,
        "ci_low": low,
        "ci_high": high,
    }


def _some(units: NDArray[np.int64] | None, rows: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    return None if units is None else units[rows]


def _accuracy(answers: Answers, images: Images, taxonomy: Taxonomy) -> Iterator[Row]:
    for variant, predictions in answers.predictions.items():
        confusion = confusion_matrix(answers.labels, predictions, taxonomy.num_labels)
        yield {
            "variant": variant,
            **_accuracy_columns(answers.correct(variant), images.unit_numbers),
            "class_mean_accuracy": class_mean_accuracy(confusion) if confusion.any() else None,
            "outside": int(confusion[:, -1].sum()),
        }


def _gaps(answers: Answers, images: Images, taxonomy: Taxonomy) -> Iterator[Row]:
    names = [answers.replicates(variant) for variant in ("mixed_same", "mixed_rand")]
    if not all(names) or not len(images.keys):
        return
    same, rand = (np.stack([answers.correct(name) for name in of]) for of in names)
    gap = bg_gap(same, rand, list(images.units))
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
        for label, row in enumerate(confusion):
            if row.any():
                inside = answers.labels == label
                yield {
                    "variant": variant,
                    "label": label,
                    "class_name": taxonomy.names[label],
                    **_accuracy_columns(
                        answers.correct(variant)[inside], _some(images.unit_numbers, inside)
                    ),
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
    for kind, n in zip(KINDS, np.bincount(kinds, minlength=len(KINDS)).tolist(), strict=True):
        low, high = wilson_of_groups(kinds == KINDS.index(kind), images.unit_numbers)
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
            answers.labels,
            np.stack([answers.bg_labels[name] for name in names]),
            np.stack([answers.correct(name) for name in names]),
            taxonomy.num_labels,
            images.unit_numbers,
        )
        rows: list[Row] = []
        for group in found:
            low, high = wilson_of_units(group.correct, group.n)
            hits, n = int(group.correct.sum()), int(group.n.sum())
            row = {"n": n, "correct": hits, "accuracy": hits / n, "ci_low": low, "ci_high": high}
            rows.append({"label": group.label, "bg_label": group.bg_label, **row})
        worst = worst_group(
            [(row["ci_low"], row["ci_high"]) for row in rows], [row["accuracy"] for row in rows]
        )
        for position, row in enumerate(rows):
            yield {"variant": variant, **row, "is_worst": position == worst}


def _sizes(answers: Answers, images: Images, taxonomy: Taxonomy) -> Iterator[Row]:
    # Of images that are not cut apart nobody knows how large the foreground is.
    known = ~np.isnan(images.fg_fraction)
    buckets, units = size_buckets(images.fg_fraction[known]), _some(images.unit_numbers, known)
    for variant in answers.predictions:
        correct = answers.correct(variant)[known]
        for bucket in np.unique(buckets).tolist():
            low, high = SIZE_EDGES[bucket], SIZE_EDGES[bucket + 1]
            inside = buckets == bucket
            yield {
                "variant": variant,
                "bucket": f"{low:g}-{high:g}",
                "fg_low": low,
                "fg_high": high,
                **_accuracy_columns(correct[inside], _some(units, inside)),
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
