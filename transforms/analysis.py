"""Statistics of a model's predictions: confusion, kinds of images, groups, BG-Gap, sensitivity.

Labels and predictions are arrays over the same images in the same order.
Source: paper sections 3 and 4 and appendix (per-image decomposition).
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transforms.intervals import Floats, benjamini_hochberg, holm, t_p_value
from transforms.taxonomy import OUTSIDE
from transforms.two_way import (
    Roles,
    difference_interval,
    p_value,
    share_interval,
    smallest_difference,
)

Labels = NDArray[np.integer]
Correct = NDArray[np.bool_]
Counts = NDArray[np.int64]

KINDS = (
    *("bg_required", "bg_fools", "bg_fg_required", "bg_fg_fools"),
    *("right_on_both", "wrong_on_both"),
)
"""Kinds of images in the paper's decomposition; `decompose` returns positions in this tuple. The
last two together are the paper's "BG irrelevant", which holds what is never recognised, too."""

SIZE_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
"""Edges of the buckets of foreground size, as fractions of the picture's pixels. The edges are
fixed, so that tables of different datasets can be compared."""


def confusion_matrix(labels: Labels, predictions: Labels, num_labels: int) -> Counts:
    """Counts images by label and prediction: (L, L + 1) int64 for L superclasses.

    The last column counts predictions outside the taxonomy.

    Args:
      labels: (n,) integers in [0, L).
      predictions: (n,) integers in [0, L), or `OUTSIDE`.

    Raises:
      ValueError: a label or a prediction is out of range.
    """
    _check_labels(labels, num_labels)
    if len(predictions) and not OUTSIDE <= predictions.min() <= predictions.max() < num_labels:
        raise ValueError(f"predictions must be in [{OUTSIDE}, {num_labels})")
    columns = np.where(predictions == OUTSIDE, num_labels, predictions).astype(np.int64)
    cells = labels.astype(np.int64) * (num_labels + 1) + columns
    counts = np.bincount(cells, minlength=num_labels * (num_labels + 1))
    return counts.reshape(num_labels, num_labels + 1)


def constant_accuracy(labels: Labels) -> float | None:
    """Computes the accuracy of the best constant answer, which is the level of chance.

    It is the share of the largest of the (n,) labels, integers >= 0; None for no pictures.

    >>> constant_accuracy(np.asarray([3, 0, 3, 1]))
    0.5
    """
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else None


def class_mean_accuracy(confusion: Counts) -> float:
    """Averages the accuracies of classes with images, from (L, L + 1) counts, not all of them 0."""
    images = confusion.sum(axis=1)
    present = images > 0
    return float((np.diagonal(confusion)[present] / images[present]).mean())


def decompose(original: Correct, mixed_rand: Correct, only_bg_t: Correct) -> NDArray[np.int64]:
    """Determines what each image needs to be recognised (paper, per-image decomposition).

    An image's kind follows from whether the answers to (original, mixed_rand, only_bg_t) are right,
    each (n,) bool: BG required = right, wrong, right; BG fools = wrong, right, wrong; BG+FG
    required = right, wrong, wrong; BG+FG fools = wrong, right, right. Otherwise the answers to
    original and mixed_rand are both right, or both wrong.

    Returns:
      (n,) int64 positions in `KINDS`: exactly one kind for each image.
    """
    lost, won = original & ~mixed_rand, mixed_rand & ~original
    cases = [lost & only_bg_t, won & ~only_bg_t, lost & ~only_bg_t, won & only_bg_t]
    cases.append(original & mixed_rand)
    return np.select(cases, list(range(len(cases))), default=len(cases)).astype(np.int64)


def size_buckets(fg_fraction: NDArray[np.floating]) -> NDArray[np.int64]:
    """Assigns foregrounds to buckets of `SIZE_EDGES`: (n,) int64 in [0, len(SIZE_EDGES) - 1).

    Bucket i holds [SIZE_EDGES[i], SIZE_EDGES[i + 1]), and the last bucket also holds 1.
    `fg_fraction` is the (n,) share of each picture's pixels that are foreground.
    """
    return np.searchsorted(SIZE_EDGES[1:-1], fg_fraction, side="right").astype(np.int64)


_NONE = 1e-24
"""A smaller variance is a rounding error."""


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The pictures that show a foreground of one class on a background of one class.

    Attributes:
      label: class of the foregrounds.
      bg_label: class of the backgrounds.
      pictures: (m,) positions of the group's pictures, at least one.
    """

    label: int
    bg_label: int
    pictures: Counts


def groups(labels: Labels, bg_labels: Labels, num_labels: int) -> list[Group]:
    """Splits the pictures of a mixed variant by class of foreground and of background.

    Args:
      labels: (n,) class of each picture's foreground.
      bg_labels: (n,) class of each picture's background; `OUTSIDE`, if unknown, is in no group.

    Returns:
      The groups that have pictures, in order of label and background label.

    Raises:
      ValueError: a label is out of range.
    """
    known = np.flatnonzero(bg_labels != OUTSIDE)
    _check_labels(labels, num_labels)
    _check_labels(bg_labels[known], num_labels)
    cells = labels[known].astype(np.int64) * num_labels + bg_labels[known]
    order = np.argsort(cells, kind="stable")
    present, starts = np.unique(cells[order], return_index=True)
    parts = np.split(known[order], starts[1:])
    return [
        Group(cell // num_labels, cell % num_labels, pictures)
        for cell, pictures in zip(present.tolist(), parts, strict=False)
    ]


def class_p_values(labels: Labels, correct: Correct, roles: Roles) -> dict[int, float]:
    """Tests whether classes are recognised better or worse than the others.

    The test is two-sided. Its null hypothesis is that the accuracy on the class equals the accuracy
    on all pictures of other classes together. The variance is two-way (`transforms.two_way`), and
    is computed from each answer's distance to the accuracy on all pictures, which is that of the
    class, too, under the null hypothesis. Distances to the class's own accuracy would all be 0 for
    a class whose few pictures are all recognised, as if that accuracy were known exactly.

    Args:
      labels: (n,) class of each picture of a variant.
      correct: (n,) bool, whether each picture is recognised.

    Returns:
      The p value of each class that has pictures, adjusted for the number of classes
      (`benjamini_hochberg`); empty if there are fewer than two classes.
    """
    present = np.unique(labels).tolist()
    if len(present) < 2:
        return {}
    distance = correct - correct.mean()
    p_values = []
    for label in present:
        inside = labels == label
        r = distance * np.where(inside, 1 / inside.sum(), -1 / (~inside).sum())
        units = min(roles.select(inside).units, roles.select(~inside).units)
        # The contributions r add up to the accuracy on the class less that on the other classes.
        # An error that is smaller is a rounding error of 0, and so is the difference then.
        t = r.sum() / np.maximum(np.sqrt(roles.variance(r)), 1e-12)
        p_values.append(t_p_value(t, max(units - 1, 0)))
    return dict(zip(present, benjamini_hochberg(np.asarray(p_values)).tolist(), strict=True))


def worst_group(bounds: list[tuple[float, float]], accuracies: list[float]) -> int | None:
    """Finds the worst of several groups: the group whose accuracy has the lowest upper bound.

    The lowest accuracy itself would pick a group of two or three images that all happen to be
    misjudged. For groups of equally many independent pictures, both criteria pick the same group.
    Of equal upper bounds, the lower accuracy decides, then the order.

    Args:
      bounds: interval (low, high) of each group's accuracy.

    Returns:
      Position of the worst group, None if there are no groups.
    """
    order = range(len(bounds))
    return min(order, key=lambda i: (bounds[i][1], accuracies[i]), default=None)


@dataclasses.dataclass(frozen=True)
class Gap:
    """BG-Gap: the accuracy on mixed_same less the accuracy on mixed_rand.

    Attributes:
      gap: gap over the pictures of all replicates, a fraction in [-1, 1].
      low, high: two-way 95 % interval of the gap, over foregrounds, or their groups, and
        backgrounds.
      mixed_same, mixed_rand: accuracies on the pictures of all replicates, fractions.
      seed_sd: standard deviation of the replicates' gaps, which shows the effect of the pairing's
        seed; None with one replicate.
      smallest: smallest true gap whose interval excludes 0 in 8 of 10 draws of images
        (`smallest_difference`).
    """

    gap: float
    low: float
    high: float
    smallest: float
    mixed_same: float
    mixed_rand: float
    seed_sd: float | None


def gaps_of_pictures(correct: Correct | Floats, is_same: Correct) -> tuple[Floats, Floats]:
    """Computes BG-Gap of any pictures of the two variants, and what each picture contributes.

    Args:
      correct: (..., p) bool, whether the foreground of each picture is recognised; or float64, the
        share of models that recognise it.
      is_same: (p,) bool, True for pictures of `mixed_same`, False for those of `mixed_rand`; both
        occur.

    Returns:
      (the gaps, (...) float64; contributions to their deviation, for their variance, which add up
      to 0, (..., p) float64).
    """
    same, rand = (correct[..., chosen].mean(axis=-1) for chosen in (is_same, ~is_same))
    means = np.where(is_same, same[..., np.newaxis], rand[..., np.newaxis])
    return same - rand, (correct - means) / np.where(is_same, is_same.sum(), -(~is_same).sum())


def sd_of_draws(correct: Correct | Floats, is_same: Correct, draws: Counts) -> Floats | None:
    """Computes BG-Gap's standard deviation over draws of backgrounds: (...) float64.

    The arguments are those of `gaps_of_pictures`, and (p,) int64, the draw of each picture; each
    draw has pictures of both variants. None with one draw.

    >>> is_same, draws = np.asarray([True, False, True, False]), np.asarray([0, 0, 1, 1])
    >>> sd_of_draws(np.asarray([1.0, 0.0, 0.5, 0.5]), is_same, draws).round(4)
    np.float64(0.7071)
    """
    of_draws = [draws == draw for draw in np.unique(draws)]
    if len(of_draws) < 2:
        return None
    # Unlike indexing, `compress` gives contiguous rows, so sums are rounded as those of one row.
    gaps = [
        np.compress(one & is_same, correct, axis=-1).mean(axis=-1)
        - np.compress(one & ~is_same, correct, axis=-1).mean(axis=-1)
        for one in of_draws
    ]
    return np.asarray(np.stack(gaps, axis=-1).std(axis=-1, ddof=1), np.float64)


def bg_gap(correct: Correct, is_same: Correct, draws: Counts, roles: Roles) -> Gap:
    """Computes BG-Gap with its interval (paper section 3).

    Args:
      correct, is_same, draws: those of `sd_of_draws`, with (p,) answers.
      roles: units of the pictures' foregrounds and backgrounds, and their paired differences.
    """
    gap, contributions = gaps_of_pictures(correct, is_same)
    spread = roles.spread(contributions)
    low, high = difference_interval(gap, spread)
    seed_sd = sd_of_draws(correct, is_same, draws)
    return Gap(
        gap=float(gap),
        low=float(low),
        high=float(high),
        smallest=float(smallest_difference(gap, spread)),
        mixed_same=float(correct[is_same].mean()),
        mixed_rand=float(correct[~is_same].mean()),
        seed_sd=None if seed_sd is None else float(seed_sd),
    )


class ComparedGaps(NamedTuple):
    """BG-Gap in k renderings of the same pictures, and how it differs from that in the first.

    Attributes:
      mixed_same, mixed_rand: (k,) accuracies.
      gap, ci_low, ci_high: (k,) gaps with their two-way 95 % intervals.
      difference, difference_low, difference_high: (k - 1,) what the others exceed the first by, in
        the same way.
      p_adjusted: (k - 1,) p values of the differences, with Holm's adjustment.
    """

    mixed_same: Floats
    mixed_rand: Floats
    gap: Floats
    ci_low: Floats
    ci_high: Floats
    difference: Floats
    difference_low: Floats
    difference_high: Floats
    p_adjusted: Floats


def compare_gaps(correct: Correct | Floats, is_same: Correct, roles: Roles) -> ComparedGaps:
    """Compares BG-Gap in k renderings of the same p pictures.

    `correct`, (k, p), and `is_same`, (p,), are those of `gaps_of_pictures`.

    >>> correct = np.asarray([[True, True, False, True], [True, True, False, False]])
    >>> roles = Roles.from_units(np.asarray([0, 1, 0, 1]), np.asarray([0, 1, 2, 3]))
    >>> compared = compare_gaps(correct, np.asarray([True, True, False, False]), roles)
    >>> compared.gap.tolist(), compared.difference.tolist()
    ([0.5, 1.0], [0.5])
    """
    gap, contributions = gaps_of_pictures(correct, is_same)
    estimates = np.stack([gap, gap - gap[0]])
    spread = roles.spread(np.stack([contributions, contributions - contributions[0]]))
    low, high = difference_interval(estimates, spread)
    return ComparedGaps(
        mixed_same=correct[:, is_same].mean(axis=-1),
        mixed_rand=correct[:, ~is_same].mean(axis=-1),
        gap=gap,
        ci_low=low[0],
        ci_high=high[0],
        difference=estimates[1, 1:],
        difference_low=low[1, 1:],
        difference_high=high[1, 1:],
        p_adjusted=holm(p_value(estimates, spread)[1, 1:]),
    )


def thirds(values: Floats) -> NDArray[np.int64]:
    """Returns the third that each of n values lies in, (n,): 0 for the least, 1 or 2.

    >>> thirds(np.asarray([0.1, 0.9, 0.5, 0.5, 0.2, 0.8])).tolist()
    [0, 2, 1, 1, 0, 2]
    """
    edges = np.quantile(values, [1 / 3, 2 / 3]) if len(values) else values
    return np.searchsorted(edges, values)


def relative_foreground_sensitivity(
    noise_fg: Correct, noise_bg: Correct, roles: Roles
) -> tuple[float, float, float] | None:
    """Computes RFS: how much more harm noise does on the foreground than on the background.

    Let a_fg and a_bg be the accuracies under noise on the foreground and on the background, and a
    their mean. Then RFS is (a_bg - a_fg) / (2 min(a, 1 - a)), the difference as a share of the
    largest possible difference of two accuracies with the mean a.
    Source: Moayeri, Pope, Balaji and Feizi 2022, "A Comprehensive Study of Image
    Classification Model Sensitivity to Foregrounds, Backgrounds, and Visual Attributes", and
    `compute_rfs` in the code of Moayeri, Singla and Feizi 2022, "Hard ImageNet". That code returns
    0 where RFS is undefined, and averages accuracies over classes and over three draws of noise;
    here all images have equal weight, and there is one draw.

    The interval is computed for another form of RFS. Take all right answers to both variants, and
    let q be the share of them that are given under noise on the background. If wrong answers are
    rarer than right answers, take all wrong answers instead, and let q be the share of them that
    are given under noise on the foreground. Then RFS is 2 q - 1, and its interval follows from
    Wilson's interval of q. The number of trials is the number of independent answers that would
    give q the same variance, which accounts for the dependence of the two answers to one image. A
    variance of 0 says nothing, so then it is at most the number of answers.

    Args:
      noise_fg: (n,) bool, whether each image is recognised under noise on the foreground.
      noise_bg: (n,) bool, whether each image is recognised under noise on the background.
      roles: units of the n images.

    Returns:
      (RFS, low, high), all in [-1, 1]; (low, high) is a 95 % interval over foregrounds, or over
      their groups. RFS is above 0 if noise on the foreground does more harm. None if all answers
      are right or all are wrong, because RFS is undefined then.

    Raises:
      ValueError: there are no images, or arrays have different shapes.
    """
    if not len(noise_fg) or not noise_fg.shape == noise_bg.shape == roles.foregrounds.shape:
        raise ValueError(
            f"{noise_fg.shape} and {noise_bg.shape} answers for {len(roles.foregrounds)} images"
        )
    # Answers that speak for, and against, a greater sensitivity to the foreground.
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
        # The two answers to one image mostly agree, so their difference is more precise than the
        # difference of answers to two images. So there may be more effective trials than answers.
        most=np.inf if variance > _NONE else answers,
    )
    return 2 * share - 1, 2 * low - 1, 2 * high - 1


def _check_labels(labels: Labels, num_labels: int) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() < num_labels:
        raise ValueError(f"labels must be in [0, {num_labels})")
