"""How much of the variance of an encoder's features is foreground, background, and both together.

Each of a foregrounds is put on each of b backgrounds, and mean squares divide the variance of the
features of these a x b composites. The background's is divided again, into that of classes of
backgrounds and that within a class.
"""

import numpy as np

from transforms.intervals import CONFIDENCE, Estimate, Floats, t_quantile
from transforms.selection import Labels

SHARES = ("foreground", "background", "interaction", "class")
"""Names of the shares. The first three add up to 1. The last is the part of the background's
variance that is due to its class."""
AT_MOST = 0.05
"""Of a share whose estimate is below this, only the upper end of its interval is told."""
FEWEST = 3
"""Smallest number of foregrounds, of backgrounds, and of classes to divide the background by."""
_LEAST = 1e-6
"""Bound of odds, because the logits of 0 and 1 are infinite."""


def feature_shares(features: Floats, labels: Labels) -> dict[str, Estimate | None]:
    """Estimates each of `SHARES`, with a 95 % interval for other images and other classes.

    The interval is a jackknife of logits: one foreground is left out at a time, and one class of
    backgrounds, or one background if their variance is not divided.

    Args:
      features: (a, b, d), standardised; at least `FEWEST` foregrounds and backgrounds.
      labels: (b,) class of each background.

    Returns:
      The class is None if no variance is found that is the background's, or it cannot be divided:
      classes have one background each or not as many, or they are fewer than `FEWEST`. If no
      feature varies, all shares are 0.
    """
    sizes = np.unique(labels, return_counts=True)[1]
    is_divided = len(sizes) >= FEWEST and sizes.min() == sizes.max() > 1
    # Features that do not vary become exactly 0.
    ordered = (features - features[:1, :1])[:, np.argsort(labels, kind="stable")]
    x = ordered.reshape(len(ordered), -1, sizes[0] if is_divided else 1, ordered.shape[2])
    odds, of_noise = _odds(x)
    variance = np.zeros(len(SHARES))
    for axis, units in enumerate(x.shape[:2]):
        logits = [np.log(_odds(np.delete(x, unit, axis))[0]) for unit in range(units)]
        variance += units * np.var(logits, axis=0)
    reach = t_quantile(min(x.shape[:2]) - 1, CONFIDENCE) * np.sqrt(variance)
    with_noise = odds * np.exp(np.outer((0, -1, 1), np.minimum(reach, 50)))
    ends = np.maximum(with_noise - of_noise, 0)
    value, low, high = (ends / (1 + ends)).tolist()
    estimates: list[Estimate | None] = list(zip(value, low, high, strict=True))
    if not is_divided or ends[0, 1] < 2 * _LEAST:
        estimates[-1] = None
    return dict(zip(SHARES, estimates, strict=True))


def _odds(x: Floats) -> tuple[Floats, Floats]:
    """Divides the variance of features, (a, classes, backgrounds of each, d), by mean squares.

    Returns the odds of each of `SHARES`, which are above 0 because noise in the mean square is
    included, and those of the noise.
    """
    a, classes, per_class, _ = x.shape
    b = classes * per_class
    centred = x - x.mean(axis=(0, 1, 2))
    of_foregrounds, of_backgrounds, of_classes, total = (
        np.square(centred.mean(axis=axes)).sum() * count
        for axes, count in (((1, 2), b), (0, a), ((0, 2), a * per_class), ((), 1))
    )
    rest = max(total - of_foregrounds - of_backgrounds, 0) / ((a - 1) * (b - 1))
    between = of_classes / (classes - 1) / (a * per_class)
    within = (of_backgrounds - of_classes) / max(b - classes, 1) / a
    noise = np.array([rest / b, rest / a, 0, within / per_class])
    mean_squares = np.array(
        [
            of_foregrounds / (a - 1) / b,
            between + within * (per_class - 1) / per_class,
            rest,
            between,
        ]
    )
    variances = np.maximum(mean_squares - noise, 0)[:3]
    others = np.maximum(
        np.append(variances.sum() - variances, max(within - rest / a, 0)),
        np.maximum(_LEAST * mean_squares, 1e-300),
    )
    return np.maximum(mean_squares, _LEAST * others) / others, noise / others
