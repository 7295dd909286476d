"""Best-fit lines over models: accuracy on a variant against accuracy on ImageNet.

Source: paper figure 8. The models are the sample: an interval says how much the slope
would differ with other models like these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import keyed_hashes
from transforms.intervals import CONFIDENCE, RESAMPLES, bootstrap_means, percentile_interval
from transforms.student_t import t_quantile
from transforms.two_way import variance_of_sums

MIN_MODELS = 3
"""A line through fewer points always fits."""

FEW_MODELS = 5
"""With fewer models than this the intervals are too narrow: in simulations of 95 % intervals,
62 % of those of 3 models and 89 % of those of 4 hold the slope, and 93 to 95 % from 5 on."""

Values = Sequence[float] | NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Line:
    """A least-squares line: accuracy = intercept + slope * ImageNet accuracy.

    Attributes:
      slope: points of accuracy for each point of ImageNet accuracy.
      slope_low, slope_high: its interval.
      intercept: at an ImageNet accuracy of 0.
      models: number of points.
    """

    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    models: int

    @property
    def has_few_models(self) -> bool:
        """Whether the interval rests on too few models to be trusted."""
        return self.models < FEW_MODELS


def fit_line(
    imagenet: Values,
    accuracy: Values,
    models: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Line | None:
    """Fits a line by least squares, with a bootstrap interval of its slope.

    Args:
      imagenet: (n,) accuracy of each model on ImageNet, a fraction.
      accuracy: (n,) its accuracy on a variant, or its BG-Gap, a fraction.
      models: (n,) their names, the keys of the resampling.
      seed: of the keyed hash.
      resamples: number of resamples of the models. Those that draw fewer than two different
        ImageNet accuracies have no slope and do not count.
      confidence: in (0, 1).

    Returns:
      The line; None for fewer than `MIN_MODELS` models, or if all have the same accuracy
      on ImageNet.

    Raises:
      ValueError: sequences of different length.
    """
    x, y = np.asarray(imagenet, np.float64), np.asarray(accuracy, np.float64)
    if not len(x) == len(y) == len(models):
        raise ValueError(f"{len(x)} and {len(y)} accuracies for {len(models)} models")
    if len(x) < MIN_MODELS or np.ptp(x) == 0:
        return None
    # About the middle: squares of numbers near each other lose their digits.
    middle, height = float(x.mean()), float(y.mean())
    x, y = x - middle, y - height
    moments = np.column_stack([x, y, x * x, x * y])
    slope = float(_slopes(moments.mean(axis=0)[np.newaxis])[0])
    hashes = keyed_hashes(seed, "trend", models)
    means = bootstrap_means(moments, np.ones(len(x)), hashes, resamples=resamples)
    slopes = _slopes(means)
    slopes = slopes[np.isfinite(slopes)]
    if not len(slopes):
        return None
    low, high = percentile_interval(slopes[:, np.newaxis], confidence)
    # Of few models, most resamples repeat some: none may draw them all.
    return Line(
        slope=slope,
        slope_low=min(float(low[0]), slope),
        slope_high=max(float(high[0]), slope),
        intercept=height - slope * middle,
        models=len(x),
    )


def slope_interval(
    imagenet: Values,
    accuracy: Values,
    sums: Sequence[NDArray[np.float64]],
    confidence: float = CONFIDENCE,
) -> tuple[float, float, float]:
    """The least-squares slope, with an interval for other models and other images.

    Both are sampled, so the variance is two-way again: that of the models, by HC3 (MacKinnon and
    White 1985), which holds also where they scatter unevenly; plus that of the images, which all
    models share; less what each model owes to the images alone, which is in both.

    Args:
      imagenet: (n,) accuracy of each model on ImageNet, a fraction; n >= 3, not all the same.
      accuracy: (n,) its accuracy on a variant, or its BG-Gap, a fraction.
      sums: of `transforms.two_way.Roles.sums`, (n, units) each: what the pictures contribute to
        each model's accuracy.
      confidence: in (0, 1).

    Returns:
      (slope, low, high), by Student's t with n - 2 degrees of freedom; infinite where the slope
      hangs on one model alone.
    """
    x, y = np.asarray(imagenet, np.float64), np.asarray(accuracy, np.float64)
    x = x - x.mean()
    weights = x / np.square(x).sum()
    slope = float(weights @ y)
    leverage = 1 / len(x) + weights * x
    if leverage.max() > 1 - 1e-9:
        return slope, -math.inf, math.inf

    def scatter(of_models: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is left of (n, ...) values beside their line, as it counts in the slope's error."""
        left = of_models - of_models.mean(axis=0) - np.multiply.outer(x, weights @ of_models)
        counted: NDArray[np.float64] = (weights / (1 - leverage) * left.T).T
        return counted

    variance = float(np.square(scatter(y)).sum())
    of_images = variance_of_sums([weights @ of_role for of_role in sums])
    in_both = variance_of_sums([scatter(of_role) for of_role in sums]).sum()
    variance += max(0.0, float(of_images - in_both))
    reach = t_quantile(len(x) - 2, confidence) * math.sqrt(variance)
    return slope, slope - reach, slope + reach


def _slopes(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least-squares slope of each row of means of (x, y, x * x, x * y); NaN without one."""
    x, y, xx, xy = moments.T
    spread = xx - x * x
    # Rounding leaves a little where all x are the same.
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes: NDArray[np.float64] = np.where(spread > 1e-12 * xx, (xy - x * y) / spread, np.nan)
    return slopes
