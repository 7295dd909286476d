"""Best-fit lines over models: accuracy on a variant against accuracy on ImageNet.

Source: paper figure 8. The models and the images are both samples, so the interval of the slope
accounts for other models and other images of the same kinds. Models are treated as independent,
although models of one architecture are not.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.intervals import CONFIDENCE, t_quantile
from transforms.two_way import variance_of_sums

MIN_MODELS = 5
"""Smallest number of models for a line: with fewer, the interval of a slope holds nearly any."""
_BAND = 21
"""Number of places at which the interval of a line's height is computed."""

Values = Sequence[float] | NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Line:
    """A least-squares line: accuracy = intercept + slope * ImageNet accuracy.

    Attributes:
      slope: points of accuracy per point of ImageNet accuracy.
      slope_low, slope_high: 95 % interval of the slope.
      intercept: accuracy at an ImageNet accuracy of 0, a fraction.
      band: (ImageNet accuracy, low, high) with the 95 % interval of the line's height, from the
        lowest ImageNet accuracy of a model to the highest.
    """

    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    models: int
    band: tuple[tuple[float, float, float], ...]


def fit_line(
    imagenet: Values, accuracy: Values, sums: Sequence[NDArray[np.float64]]
) -> Line | None:
    """Fits a line by least squares, with the 95 % intervals and arguments of `line_interval`.

    Returns:
      The line; None if there are fewer than `MIN_MODELS` models, or if its error is unknown. It is
      unknown if all models, or all except one, have the same accuracy on ImageNet,
      if all foregrounds or all backgrounds are one unit, or if neither models nor images vary.

    Raises:
      ValueError: sequences have different lengths.
    """
    if not len(imagenet) == len(accuracy) == len(sums[0]):
        raise ValueError(
            f"{len(imagenet)} and {len(accuracy)} accuracies for {len(sums[0])} models"
        )
    if len(imagenet) < MIN_MODELS or np.ptp(imagenet) == 0:
        return None
    slope, low, high = line_interval(imagenet, accuracy, sums)
    band = [
        (x, *line_interval(imagenet, accuracy, sums, at=x)[1:])
        for x in np.linspace(min(imagenet), max(imagenet), _BAND).tolist()
    ]
    if not (math.isfinite(low) and np.isfinite(band).all()):
        return None
    return Line(
        slope=slope,
        slope_low=low,
        slope_high=high,
        intercept=float(np.mean(accuracy) - slope * np.mean(imagenet)),
        models=len(imagenet),
        band=tuple(band),
    )


def line_interval(
    imagenet: Values,
    accuracy: Values,
    sums: Sequence[NDArray[np.float64]],
    confidence: float = CONFIDENCE,
    at: float | None = None,
) -> tuple[float, float, float]:
    """Computes the slope, or the height, of the least-squares line, with an interval.

    Models and images are both sampled, so the variance is two-way. It is the variance over models,
    plus the variance over images, which all models share, less the part that is in both: the
    scatter of a model that is due to the images. The variance over models is HC3 (MacKinnon and
    White 1985), which also holds if some models scatter more than others.

    Args:
      imagenet: (n,) accuracy of each model on ImageNet, a fraction; n >= 3, not all the same.
      accuracy: (n,) accuracy of each model on a variant, or its BG-Gap, a fraction.
      sums: arrays (n, units) from `transforms.two_way.Roles.corrected`, which sum the pictures'
        contributions to each model's accuracy.
      confidence: probability with which the interval should cover the truth, in (0, 1).
      at: the accuracy on ImageNet at which to compute the height; None for the slope.

    Returns:
      (slope or height, low, high), by Student's t with n - 2 degrees of freedom. The bounds are
      infinite if the slope depends on one model alone, if all foregrounds or all backgrounds are
      one unit, or if neither models nor images vary, for example if no model recognises anything.
    """
    x, y = np.asarray(imagenet, np.float64), np.asarray(accuracy, np.float64)
    mean, x = x.mean(), x - x.mean()
    slopes = x / np.square(x).sum()
    weights = slopes if at is None else 1 / len(x) + (at - mean) * slopes
    value = float(weights @ y)
    leverage = 1 / len(x) + slopes * x
    unbounded = value, -math.inf, math.inf
    if leverage.max() > 1 - 1e-9:
        return unbounded

    def scatter(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weighs residuals of (n, ...) values from the line by their effect on it (HC3)."""
        residuals = values - values.mean(axis=0) - np.multiply.outer(x, slopes @ values)
        weighted: NDArray[np.float64] = (weights / (1 - leverage) * residuals.T).T
        return weighted

    variance = float(np.square(scatter(y)).sum())
    over_images = variance_of_sums([weights @ role_sums for role_sums in sums])
    if not np.isfinite(over_images):
        return unbounded
    in_both = variance_of_sums([scatter(role_sums) for role_sums in sums]).sum()
    variance += max(0.0, float(over_images - in_both))
    if variance < 1e-24:
        # A few models can lie on a line by chance, but the uncertainty from the images remains.
        variance = float(over_images)
    if variance < 1e-24:
        return unbounded
    reach = t_quantile(len(x) - 2, confidence) * math.sqrt(variance)
    return value, value - reach, value + reach
