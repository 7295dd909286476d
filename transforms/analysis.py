"""What predictions say of a model: classes, kinds of images, groups, sizes, BG-Gap.

Everything is counted from labels and predictions of the same images in the same order.
Source: paper sections 3 and 4 and appendix (per-image decomposition).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from transforms.intervals import bootstrap_hashes, bootstrap_means, percentile_interval, sum_units
from transforms.taxonomy import OUTSIDE

Labels = NDArray[np.integer]
Correct = NDArray[np.bool_]
Counts = NDArray[np.int64]

KINDS = ("bg_required", "bg_fools", "bg_fg_required", "bg_fg_fools", "bg_irrelevant")
"""Kinds of images in the paper's decomposition; `decompose` gives positions in it."""

SIZE_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
"""Edges of the buckets of foreground size, as fractions of the picture: fixed, so that tables
of different datasets compare. Each holds a tenth to a quarter of ImageNet's pictures."""


def confusion_matrix(labels: Labels, predictions: Labels, num_labels: int) -> Counts:
    """Counts images by label and prediction.

    Args:
      labels: (n,) integers in [0, num_labels).
      predictions: (n,) integers in [0, num_labels), or `OUTSIDE`.
      num_labels: number of superclasses, L.

    Returns:
      (L, L + 1) int64; the last column counts predictions outside the taxonomy.

    Raises:
      ValueError: a label or a prediction out of range.
    """
    _check_labels(labels, num_labels)
    if len(predictions) and not OUTSIDE <= predictions.min() <= predictions.max() < num_labels:
        raise ValueError(f"predictions must be in [{OUTSIDE}, {num_labels})")
    columns = np.where(predictions == OUTSIDE, num_labels, predictions).astype(np.int64)
    cells = labels.astype(np.int64) * (num_labels + 1) + columns
    counts = np.bincount(cells, minlength=num_labels * (num_labels + 1))
    return counts.reshape(num_labels, num_labels + 1)


def class_mean_accuracy(confusion: Counts) -> float:
    """Mean over the classes that have images of their accuracy; NaN if none has.

    Args:
      confusion: (L, L + 1) of `confusion_matrix`.
    """
    images = confusion.sum(axis=1)
    present = images > 0
    if not present.any():
        return float("nan")
    return float((np.diagonal(confusion)[present] / images[present]).mean())


def decompose(original: Correct, mixed_rand: Correct, only_bg_t: Correct) -> NDArray[np.int64]:
    """What each image needs to be recognised (paper, per-image decomposition).

    By correctness on (original, mixed_rand, only_bg_t): BG required = right, wrong, right;
    BG fools = wrong, right, wrong; BG+FG required = right, wrong, wrong; BG+FG fools = wrong,
    right, right; BG irrelevant = original and mixed_rand agree.

    Args:
      original, mixed_rand, only_bg_t: (n,) bool, whether each image's version is right.

    Returns:
      (n,) int64 positions in `KINDS`: exactly one kind for each image.
    """
    lost, won = original & ~mixed_rand, mixed_rand & ~original
    cases = [lost & only_bg_t, won & ~only_bg_t, lost & ~only_bg_t, won & only_bg_t]
    return np.select(cases, list(range(4)), default=4).astype(np.int64)


def size_buckets(fg_fraction: NDArray[np.floating]) -> NDArray[np.int64]:
    """Bucket of each foreground's size.

    Args:
      fg_fraction: (n,) shares of the picture, in [0, 1].

    Returns:
      (n,) int64 in [0, len(SIZE_EDGES) - 1): bucket i holds [SIZE_EDGES[i],
      SIZE_EDGES[i + 1]), the last one 1 as well.

    Raises:
      ValueError: a share out of range, or NaN.
    """
    if len(fg_fraction) and not 0 <= fg_fraction.min() <= fg_fraction.max() <= 1:
        raise ValueError("foregrounds are fractions of the picture, in [0, 1]")
    return np.searchsorted(SIZE_EDGES[1:-1], fg_fraction, side="right").astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Foregrounds of one class on backgrounds of one class.

    Attributes:
      label: class of the foreground.
      bg_label: class of the background.
      n: (units,) pictures of each foreground, or group of such, in the group, > 0.
      correct: (units,) how many of them are right.
    """

    label: int
    bg_label: int
    n: Counts
    correct: Counts


def groups(
    labels: Labels,
    bg_labels: Labels,
    correct: Correct,
    num_labels: int,
    units: Labels | None = None,
) -> list[Group]:
    """Splits the pictures of a mixed variant by class of foreground and of background.

    Args:
      labels: (n,) class of each foreground.
      bg_labels: (replicates, n) class of the background it has in each replicate; `OUTSIDE`
        where that is not known: such a picture is in no group.
      correct: (replicates, n) whether it is recognised there.
      num_labels: number of superclasses.
      units: (n,) int64, the same from 0 on for foregrounds that belong together; None if none do.

    Returns:
      The groups that hold pictures, by label and background label.

    Raises:
      ValueError: a label out of range.
    """
    _check_labels(labels, num_labels)
    _check_labels(bg_labels[bg_labels != OUTSIDE], num_labels)
    found = []
    for label in np.unique(labels):
        of_label = labels == label
        backgrounds, right = bg_labels[:, of_label], correct[:, of_label]
        for bg_label in np.unique(backgrounds[backgrounds != OUTSIDE]):
            inside = backgrounds == bg_label
            n = inside.sum(axis=0)
            hits = (inside & right).sum(axis=0)
            if units is not None:
                n, hits = (_sum_by(units[of_label], counts) for counts in (n, hits))
            found.append(Group(int(label), int(bg_label), n[n > 0], hits[n > 0]))
    return found


def _sum_by(units: Labels, counts: Counts) -> Counts:
    return np.bincount(units, counts).astype(np.int64)


def worst_group(bounds: list[tuple[float, float]], accuracies: list[float]) -> int | None:
    """Which of several groups is the worst: the one whose interval ends lowest.

    The lowest accuracy alone would name whichever group of two or three images happens to
    have none right; for groups of equal size it is the same.

    Args:
      bounds: (low, high) of each group's accuracy.
      accuracies: of each group; they decide between equal bounds, then the order does.

    Returns:
      Its position, None without groups.
    """
    if not bounds:
        return None
    return min(range(len(bounds)), key=lambda i: (bounds[i][1], accuracies[i]))


@dataclasses.dataclass(frozen=True)
class Gap:
    """BG-Gap, the accuracy on mixed_same less that on mixed_rand.

    Attributes:
      gap: mean over replicates, a fraction.
      low, high: 95 % interval by resampling foregrounds, or groups of such, each with all of
        its replicates.
      mixed_same, mixed_rand: mean accuracies.
      seed_sd: standard deviation of the replicates' gaps, what another seed of the pairing
        changes; None with one replicate.
    """

    gap: float
    low: float
    high: float
    mixed_same: float
    mixed_rand: float
    seed_sd: float | None


def bg_gap(mixed_same: Correct, mixed_rand: Correct, units: list[str]) -> Gap:
    """BG-Gap with its interval (paper section 3).

    Args:
      mixed_same, mixed_rand: (replicates, n) bool, whether each foreground is recognised on
        its background of that replicate.
      units: (n,) what each foreground belongs to: its key, or its group.

    Returns:
      The gap, a fraction in [-1, 1], with what it is made of.

    Raises:
      ValueError: no foregrounds, or arrays of different shapes.
    """
    if mixed_same.shape != mixed_rand.shape or mixed_same.shape[1] != len(units):
        raise ValueError(
            f"{mixed_same.shape} and {mixed_rand.shape} answers for {len(units)} foregrounds"
        )
    if not units:
        raise ValueError("a gap of no foregrounds has no interval")
    replicates = len(mixed_same)
    difference = mixed_same.astype(np.float64) - mixed_rand
    sums, sizes, names = sum_units(difference.sum(axis=0)[:, np.newaxis], units)
    means = bootstrap_means(sums, sizes * replicates, bootstrap_hashes(names))
    low, high = percentile_interval(means)
    by_replicate = difference.mean(axis=1)
    return Gap(
        gap=float(difference.mean()),
        low=float(low[0]),
        high=float(high[0]),
        mixed_same=float(mixed_same.mean()),
        mixed_rand=float(mixed_rand.mean()),
        seed_sd=float(by_replicate.std(ddof=1)) if replicates > 1 else None,
    )


def _check_labels(labels: Labels, num_labels: int) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() < num_labels:
        raise ValueError(f"labels must be in [0, {num_labels})")
