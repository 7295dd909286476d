"""Best-fit lines over models: accuracy on a variant against accuracy on ImageNet.

Source: paper figure 8. The models are the sample: an interval says how much the slope
would differ with other models like these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import keyed_hashes
from transforms.intervals import CONFIDENCE, RESAMPLES, bootstrap_means, percentile_interval

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


def _slopes(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least-squares slope of each row of means of (x, y, x * x, x * y); NaN without one."""
    x, y, xx, xy = moments.T
    spread = xx - x * x
    # Rounding leaves a little where all x are the same.
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes: NDArray[np.float64] = np.where(spread > 1e-12 * xx, (xy - x * y) / spread, np.nan)
    return slopes
