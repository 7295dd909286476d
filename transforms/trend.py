"""Best-fit lines over models: accuracy on a variant against accuracy on ImageNet.

Source: paper figure 8. Both models and images are samples, so the interval of the slope covers
other models and images like these. Models are treated as independent, although those of one family
are not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.intervals import CONFIDENCE, t_quantile
from transforms.two_way import variance_of_sums

MIN_MODELS = 3
"""Least number of models, because a line always fits fewer points."""

Values = Sequence[float] | NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Line:
    """A least-squares line: accuracy = intercept + slope * ImageNet accuracy.

    Attributes:
      slope: points of accuracy per point of ImageNet accuracy.
      slope_low, slope_high: its interval.
      intercept: accuracy at an ImageNet accuracy of 0.
      models: number of models.
    """

    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    models: int


def fit_line(
    imagenet: Values, accuracy: Values, sums: Sequence[NDArray[np.float64]]
) -> Line | None:
    """Fits a line by least squares, with the 95 % interval of `slope_interval`.

    Args:
      imagenet: (n,) accuracy of each model on ImageNet, a fraction.
      accuracy: (n,) its accuracy on a variant, or its BG-Gap, a fraction.
      sums: see `slope_interval`.

    Returns:
      The line; None if there are fewer than `MIN_MODELS` models or the error of the slope is
      unknown, because all models but at most one have the same accuracy on ImageNet, or nothing
      varies.

    Raises:
      ValueError: sequences have different lengths.
    """
    if not len(imagenet) == len(accuracy) == len(sums[0]):
        raise ValueError(
            f"{len(imagenet)} and {len(accuracy)} accuracies for {len(sums[0])} models"
        )
    if len(imagenet) < MIN_MODELS or np.ptp(imagenet) == 0:
        return None
    slope, low, high = slope_interval(imagenet, accuracy, sums)
    if not math.isfinite(low):
        return None
    return Line(
        slope=slope,
        slope_low=low,
        slope_high=high,
        intercept=float(np.mean(accuracy) - slope * np.mean(imagenet)),
        models=len(imagenet),
    )


def slope_interval(
    imagenet: Values,
    accuracy: Values,
    sums: Sequence[NDArray[np.float64]],
    confidence: float = CONFIDENCE,
) -> tuple[float, float, float]:
    """Computes the least-squares slope, with an interval over models and images.

    Both are sampled, so the variance is two-way: the variance over models, by HC3 (MacKinnon and
    White 1985), which also holds if they scatter unevenly; plus the variance over images, which all
    models share; less the part that is in both, which each model owes to the images alone.

    Args:
      imagenet: (n,) accuracy of each model on ImageNet, a fraction; n >= 3, not all the same.
      accuracy: (n,) its accuracy on a variant, or its BG-Gap, a fraction.
      sums: from `transforms.two_way.Roles.sums`, (n, units) each: contributions of the pictures to
        each model's accuracy.
      confidence: in (0, 1).

    Returns:
      (slope, low, high), by Student's t with n - 2 degrees of freedom. The bounds are infinite if
      the slope depends on one model alone, or if nothing varies, such as if no model recognises
      anything.
    """
    x, y = np.asarray(imagenet, np.float64), np.asarray(accuracy, np.float64)
    x = x - x.mean()
    weights = x / np.square(x).sum()
    slope = float(weights @ y)
    leverage = 1 / len(x) + weights * x
    unbounded = slope, -math.inf, math.inf
    if leverage.max() > 1 - 1e-9:
        return unbounded

    def scatter(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights the residuals of (n, ...) values by their effect on the slope's error."""
        residuals = values - values.mean(axis=0) - np.multiply.outer(x, weights @ values)
        weighted: NDArray[np.float64] = (weights / (1 - leverage) * residuals.T).T
        return weighted

    variance = float(np.square(scatter(y)).sum())
    over_images = variance_of_sums([weights @ role_sums for role_sums in sums])
    in_both = variance_of_sums([scatter(role_sums) for role_sums in sums]).sum()
    variance += max(0.0, float(over_images - in_both))
    if variance < 1e-24:
        # A few models can lie on a line by chance, but the uncertainty from the images remains.
        variance = float(over_images)
    if variance < 1e-24:
        return unbounded
    reach = t_quantile(len(x) - 2, confidence) * math.sqrt(variance)
    return slope, slope - reach, slope + reach
