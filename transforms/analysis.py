"""What predictions say of a model: classes, kinds of images, groups, sizes, BG-Gap, sensitivity.

Everything is counted from labels and predictions of the same images in the same order.
Source: paper sections 3 and 4 and appendix (per-image decomposition).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from transforms.intervals import benjamini_hochberg
from transforms.taxonomy import OUTSIDE
from transforms.two_way import Floats, Roles, difference_interval, p_value, share_interval

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


def constant_accuracy(labels: Labels) -> float | None:
    """Accuracy of the best constant answer, which looks at no picture: chance.

    Args:
      labels: (n,) integers >= 0, of the pictures tested.

    Returns:
      The share of the largest class, None of no pictures.

    >>> constant_accuracy(np.asarray([3, 0, 3, 1]))
    0.5
    """
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else None


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


_NONE = 1e-24
"""A variance below this is rounding."""


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Foregrounds of one class on backgrounds of one class.

    Attributes:
      label: class of the foreground.
      bg_label: class of the background.
      pictures: positions of its pictures, at least one.
    """

    label: int
    bg_label: int
    pictures: Counts


def groups(labels: Labels, bg_labels: Labels, num_labels: int) -> list[Group]:
    """Splits the pictures of a mixed variant by class of foreground and of background.

    Args:
      labels: (n,) class of each picture's foreground.
      bg_labels: (n,) class of its background; `OUTSIDE` where that is not known: such a picture is
        in no group.
      num_labels: number of superclasses.

    Returns:
      The groups that hold pictures, by label and background label.

    Raises:
      ValueError: a label out of range.
    """
    known = np.flatnonzero(bg_labels != OUTSIDE)
    _check_labels(labels, num_labels)
    _check_labels(bg_labels[known], num_labels)
    cells = labels[known].astype(np.int64) * num_labels + bg_labels[known]
    order = np.argsort(cells, kind="stable")
    found, starts = np.unique(cells[order], return_index=True)
    parts = np.split(known[order], starts[1:])
    return [
        Group(cell // num_labels, cell % num_labels, pictures)
        for cell, pictures in zip(found.tolist(), parts, strict=False)
    ]


def class_p_values(labels: Labels, correct: Correct, roles: Roles) -> dict[int, float]:
    """Whether classes are recognised better or worse than the others.

    Args:
      labels: (n,) class of each picture of a variant.
      correct: (n,) whether it is recognised.
      roles: of the pictures.

    Returns:
      Of each class that has pictures, the p value of a two-sided test that its accuracy is that of
      all pictures of other classes, adjusted for the number of classes (`benjamini_hochberg`). Its
      variance is two-way, of distances from the accuracy on all pictures, which both would have:
      of a few pictures that are all right, those from their own mean would be none. Nothing
      without another class.
    """
    present = np.unique(labels).tolist()
    if len(present) < 2:
        return {}
    distance = correct - correct.mean()
    found = []
    for label in present:
        inside = labels == label
        r = distance * np.where(inside, 1 / inside.sum(), -1 / (~inside).sum())
        units = min(roles.of_pictures(inside).units, roles.of_pictures(~inside).units)
        # r adds up to the difference.
        found.append(p_value(r.sum(), roles.variance(r), units))
    return dict(zip(present, benjamini_hochberg(np.asarray(found)).tolist(), strict=True))


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
      low, high: two-way 95 % interval, over foregrounds, or groups of such, and backgrounds.
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


def gap_contributions(mixed_same: Correct, mixed_rand: Correct) -> Floats:
    """What each picture contributes to BG-Gap, for its variance.

    Args:
      mixed_same, mixed_rand: (replicates, n) bool, as `bg_gap`.

    Returns:
      (2 * replicates * n,) float64, those of mixed_same first, replicate after replicate; they add
      up to 0.
    """
    return np.concatenate(
        [mixed_same - mixed_same.mean(), mixed_rand.mean() - mixed_rand]
    ).ravel() / (mixed_same.size)


def bg_gap(mixed_same: Correct, mixed_rand: Correct, roles: Roles) -> Gap:
    """BG-Gap with its interval (paper section 3).

    Args:
      mixed_same, mixed_rand: (replicates, n) bool, whether each foreground is recognised on
        its background of that replicate.
      roles: of all these pictures, in the order of `gap_contributions`.

    Returns:
      The gap, a fraction in [-1, 1], with what it is made of.

    Raises:
      ValueError: no foregrounds, or arrays of different shapes.
    """
    pictures = mixed_same.size + mixed_rand.size
    if mixed_same.shape != mixed_rand.shape or pictures != len(roles.foregrounds):
        raise ValueError(
            f"{mixed_same.shape} and {mixed_rand.shape} answers for {len(roles.foregrounds)} "
            "pictures"
        )
    if not pictures:
        raise ValueError("a gap of no foregrounds has no interval")
    gap = np.asarray(mixed_same.mean() - mixed_rand.mean())
    variance = roles.variance(gap_contributions(mixed_same, mixed_rand))
    low, high = difference_interval(gap, variance, roles.units)
    by_replicate = mixed_same.mean(axis=1) - mixed_rand.mean(axis=1)
    return Gap(
        gap=float(gap),
        low=float(low),
        high=float(high),
        mixed_same=float(mixed_same.mean()),
        mixed_rand=float(mixed_rand.mean()),
        seed_sd=float(by_replicate.std(ddof=1)) if len(mixed_same) > 1 else None,
    )


def relative_foreground_sensitivity(
    noise_fg: Correct, noise_bg: Correct, roles: Roles
) -> tuple[float, float, float] | None:
    """Says how much more noise on the foreground harms than noise on the background, as a share of
    the most that it could at their mean accuracy.

    With a_fg and a_bg the accuracies under noise and a their mean, it is
    (a_bg - a_fg) / (2 min(a, 1 - a)). Source: Moayeri, Pope, Balaji and Feizi 2022, "A
    Comprehensive Study of Image Classification Model Sensitivity to Foregrounds, Backgrounds, and
    Visual Attributes", and `compute_rfs` of the code of Moayeri, Singla and Feizi 2022, "Hard
    ImageNet". That code gives 0 where it is not defined, and takes accuracies as means over classes
    and over three draws of noise; here all images count alike, and there is one draw.

    Of right answers to both variants together, a share q is under noise on the background; or, if
    wrong answers are rarer, q of those is under noise on the foreground. Then RFS is 2 q - 1, and
    its interval is Wilson's of q, for as many answers as would have q's variance: the two answers
    to one image go together.

    Args:
      noise_fg, noise_bg: (n,) bool, whether each image is recognised.
      roles: of the n images.

    Returns:
      (sensitivity, low, high), in [-1, 1], with a 95 % interval over foregrounds, or groups of
      such; above 0 if noise on the foreground does more harm. None where all answers are right, or
      none is: then it is not defined.

    Raises:
      ValueError: no images, or arrays of different shapes.
    """
    if not len(noise_fg) or not noise_fg.shape == noise_bg.shape == roles.foregrounds.shape:
        raise ValueError(
            f"{noise_fg.shape} and {noise_bg.shape} answers for {len(roles.foregrounds)} images"
        )
    # Those that speak for sensitivity to the foreground, and those against.
    pro, contra = noise_bg, noise_fg
    if noise_bg.mean() + noise_fg.mean() > 1:
        pro, contra = ~noise_fg, ~noise_bg
    both = pro.astype(np.float64) + contra
    answers = float(both.sum())
    if not answers:
        return None
    share = float(pro.sum()) / answers
    variance = float(roles.variance((pro - share * both) / answers))
    low, high = share_interval(
        share,
        variance,
        roles.units,
        fewest=answers**2 / float(np.square(roles.sums(both)[0]).sum()),
        # Answers to one image are mostly alike: a difference between the two is surer than one
        # between as many images.
        most=np.inf if variance > _NONE else answers,
    )
    return 2 * share - 1, 2 * low - 1, 2 * high - 1


def _check_labels(labels: Labels, num_labels: int) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() < num_labels:
        raise ValueError(f"labels must be in [0, {num_labels})")
