"""Student's t: what a normal quantile becomes where the variance is estimated from few units.

With t = sqrt(df) tan(angle) the density is a power of a cosine, so Gauss-Legendre quadrature gives
its integral to 12 digits for any number of degrees of freedom. (scipy has both functions, but
nothing else here needs it.)
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)
_FARTHEST = 12.0
"""Standard deviations beyond which a distribution of many degrees of freedom holds nothing."""


@functools.lru_cache(maxsize=4096)
def t_quantile(df: int, confidence: float) -> float:
    """The t that a share of Student's distribution lies within, on both sides of 0.

    Args:
      df: degrees of freedom, >= 0.
      confidence: that share, in (0, 1).

    Returns:
      t > 0; infinite without degrees of freedom.

    Raises:
      ValueError: a share or degrees out of range.

    >>> round(t_quantile(10, 0.95), 4)
    2.2281
    """
    if not 0 < confidence < 1 or df < 0:
        raise ValueError(f"no quantile of {confidence} with {df} degrees of freedom")
    if df == 0:
        return math.inf
    # The integral is concave in the angle, so Newton's steps from 0 never go too far.
    angle = 0.0
    for _ in range(100):
        missing = confidence - float(_share_within(np.asarray(angle), df))
        step = missing / (2 * _height(df) * math.cos(angle) ** (df - 1))
        angle += step
        if step <= 1e-13 * angle:
            break
    return math.sqrt(df) * math.tan(angle)


def t_p_value(t: Floats, df: int) -> Floats:
    """How often chance alone gives as large a t, on either side.

    Args:
      t: of any shape, may be infinite.
      df: degrees of freedom, >= 0.

    Returns:
      Of that shape, in [0, 1], to 12 digits after the point; 1 without degrees of freedom.
    """
    if df == 0:
        return np.ones_like(t)
    within = _share_within(np.arctan(np.abs(t) / math.sqrt(df)), df)
    outside: Floats = np.clip(1.0 - within, 0.0, 1.0).round(12)
    return outside


def _height(df: int) -> float:
    """The density of the angle at 0."""
    if df > 1000:
        # Logarithms of large factorials lose the digits of their difference; this is its series.
        return math.sqrt(df / (2 * math.pi)) * math.exp(-1 / (4 * df) + 1 / (24 * df**3))
    return math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)


def _share_within(angle: Floats, df: int) -> Floats:
    """The share of the distribution between -angle and angle."""
    half = np.minimum(angle, _FARTHEST / math.sqrt(df))[..., np.newaxis] / 2
    values = np.cos(half * (_NODES + 1)) ** (df - 1)
    share: Floats = 2 * _height(df) * (half * values * _WEIGHTS).sum(axis=-1)
    return share
