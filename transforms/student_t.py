"""Student's t: what a normal quantile becomes where the variance is estimated from few units."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@functools.lru_cache(maxsize=4096)
def t_quantile(df: int, confidence: float) -> float:
    """The t that a share of Student's distribution lies within, on both sides of 0
    (`scipy.special.stdtrit`).

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
    # Here, since who only runs models makes no tables, and may lack it.
    from scipy.special import stdtrit

    if not 0 < confidence < 1 or df < 0:
        raise ValueError(f"no quantile of {confidence} with {df} degrees of freedom")
    return float(stdtrit(df, (1 + confidence) / 2)) if df else math.inf


def t_p_value(t: Floats, df: int) -> Floats:
    """How often chance alone gives as large a t, on either side (`scipy.special.stdtr`).

    Args:
      t: of any shape, may be infinite.
      df: degrees of freedom, >= 0.

    Returns:
      Of that shape, in [0, 1]; 1 without degrees of freedom.
    """
    from scipy.special import stdtr

    outside: Floats = 2 * stdtr(df, -np.abs(t)) if df else np.ones_like(t)
    return outside
