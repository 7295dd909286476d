"""Best-fit lines over models: accuracy on a variant against accuracy on ImageNet.

Source: paper figure 8. Models and images are samples: an interval says how much the slope would
differ with others like these. Models are taken as independent, which those of one family are not.
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
"""A line through fewer points always fits."""

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


def fit_line(
    imagenet: Values, accuracy: Values, sums: Sequence[NDArray[np.float64]]
) -> Line | None:
    """Fits a line by least squares, with the 95 % interval of `slope_interval`.

    Args:
      imagenet: (n,) accuracy of each model on ImageNet, a fraction.
      accuracy: (n,) its accuracy on a variant, or its BG-Gap, a fraction.
      sums: as `slope_interval`.

    Returns:
      The line; None for fewer than `MIN_MODELS` models, if all have the same accuracy on
      ImageNet, or all but one, or nothing varies: then its error is not known.

    Raises:
      ValueError: sequences of different length.
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
      hangs on one model alone, or nothing varies: all models have none right.
    """
    x, y = np.asarray(imagenet, np.float64), np.asarray(accuracy, np.float64)
    x = x - x.mean()
    weights = x / np.square(x).sum()
    slope = float(weights @ y)
    leverage = 1 / len(x) + weights * x
    nothing = slope, -math.inf, math.inf
    if leverage.max() > 1 - 1e-9:
        return nothing

    def scatter(of_models: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is left of (n, ...) values beside their line, as it counts in the slope's error."""
        left = of_models - of_models.mean(axis=0) - np.multiply.outer(x, weights @ of_models)
        counted: NDArray[np.float64] = (weights / (1 - leverage) * left.T).T
        return counted

    variance = float(np.square(scatter(y)).sum())
    of_images = variance_of_sums([weights @ of_role for of_role in sums])
    in_both = variance_of_sums([scatter(of_role) for of_role in sums]).sum()
    variance += max(0.0, float(of_images - in_both))
    if variance < 1e-24:
        # Few models can lie on a line by chance: what the images leave open stays open.
        variance = float(of_images)
    if variance < 1e-24:
        return nothing
    reach = t_quantile(len(x) - 2, confidence) * math.sqrt(variance)
    return slope, slope - reach, slope + reach
