"""Variances of estimates of a method, from several trainings of it, its seeds.

All seeds answer the same pictures. The estimate of a method is the mean over its seeds. Its error
has two parts: other images and backgrounds would have given other answers, which the seeds have in
common as far as their answers agree, and other seeds would have been trained to other weights.

With K seeds, let A be the two-way variance (`transforms.two_way`) of the mean, s^2 the variance of
the seeds' estimates around the mean, and W the mean two-way variance of a seed's deviation from the
mean. What of A is common to all seeds, and no share of their own errors, is C = max(0, A - W / K).
The variance of the mean is then V = max(A, C + s^2 / K), and its degrees of freedom follow from
those of C and s^2 (Satterthwaite 1946). For the difference of two methods, A is the variance of the
difference of their means, because both answer the same pictures, and each has its own s^2 and W,
because their seeds have nothing in common.

Intervals of differences suppose paired differences of -1, 0 and 1 (`EstimateSpread`). These are
the differences of single seeds, so their scatter is that of single seeds. Means of seeds scatter
less; with their scatter, intervals of accurate models would be half as wide again.
"""

from typing import NamedTuple

import numpy as np

from transforms.two_way import EstimateSpread, Floats, Roles

MIN_SEEDS = 3
"""The fewest seeds whose estimates have a variance worth stating."""
_NONE = 1e-24
"""A smaller variance is a rounding error of 0, and says nothing of degrees of freedom."""


class Seeds(NamedTuple):
    """The estimates of K seeds of a method from the same n pictures.

    Attributes:
      values: (K,) float64, their estimates.
      r: (K, n) float64, the contribution of each picture to each estimate, as for `Roles.sums`.
    """

    values: Floats
    r: Floats


def spread_of_methods(roles: Roles, *methods: Seeds) -> EstimateSpread:
    """Computes the spread of a method's estimate, or of the first's minus that of a second.

    `roles` are those of the pictures. Each method has at least `MIN_SEEDS` seeds, or each a single
    one; then the spread is that of other images and backgrounds alone.
    """
    return _spread(roles, methods, further=0)


def spread_of_further(roles: Roles, method: Seeds) -> EstimateSpread:
    """Computes the spread, around the mean of the seeds, of what one further seed would show."""
    return _spread(roles, (method,), further=1)


def _spread(roles: Roles, methods: tuple[Seeds, ...], further: int) -> EstimateSpread:
    first, *others = methods
    mean = first.r.mean(axis=0) - sum(other.r.mean(axis=0) for other in others)
    of_images = roles.spread(np.asarray(mean))
    numbers = np.asarray([len(one.values) for one in methods])
    # With one unit, nothing is known of other images, so nothing can be added to that.
    if of_images.units < 2 or numbers.max() == 1:
        return of_images
    squares = np.asarray([one.values.var(ddof=1) for one in methods])
    deviations = [one.r - one.r.mean(axis=0) for one in methods]
    noises = np.asarray([roles.variance(each).sum() / (len(each) - 1) for each in deviations])
    common = max(0.0, float(of_images.variance - (noises / numbers).sum()))
    variance = max(float(of_images.variance), common + float((squares / numbers).sum()))
    variance += further * float(np.maximum(0, squares - noises).sum())
    of_seeds = squares * (1 / numbers + further)
    terms = common**2 / (of_images.units - 1) + float((of_seeds**2 / (numbers - 1)).sum())
    df = variance**2 / terms if terms > _NONE**2 else of_images.units - 1
    df = max(df, further * float(numbers.min() - 1))
    within = sum(np.square(roles.paired(each)).sum() / len(each) for each in deviations)
    scatter = np.asarray(of_images.scatter + of_images.pairs * within)
    # As many differences of single seeds have the variance of a mean whose pictures share no unit.
    more = float(scatter / of_images.scatter) if of_images.scatter > _NONE else 1.0
    units = min(df, of_images.units - 1) + 1
    return EstimateSpread(np.asarray(variance), scatter, of_images.pairs * more, units)
