"""What kernels are compiled with: decorators, and exp and log that LLVM vectorises.

The decorators compile without the GIL and without Python's division checks.

exp and log have no calls, branches or tables, so that LLVM vectorises loops that use them. Both
split off a power of two through the bits of a float32, and use a series for the remaining factor.
`exp_below_zero` rounds to a whole number by adding 1.5 * 2^23, which leaves the whole number in the
low bits. So no compiler flag may allow its sums to be reordered.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

Integer = int | np.integer[Any]
"""An integer of Python or NumPy. Compiled kernels do not tell them apart."""

at = np.uint64
"""Makes an index unsigned. For a signed index, kernels would first ask whether it is negative."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

# By the error model of Python, each division would check for zero, and this branch would keep LLVM
# from vectorising loops.
_OPTIONS = {"nogil": True, "error_model": "numpy"}

helper: Callable[[_Function], _Function] = numba.njit(**_OPTIONS)
"""Compiles a function that only compiled functions call, so its code becomes part of theirs."""
inlined: Callable[[_Function], _Function] = numba.njit(forceinline=True, **_OPTIONS)
"""Compiles a helper that is too short to be called: passing arrays would take most of its time.
Otherwise, LLVM would call a helper that several functions use."""
contracting: Callable[[_Function], _Function] = numba.njit(fastmath={"contract"}, **_OPTIONS)
"""Compiles a helper in which a * b + c may be rounded once instead of twice."""


def entry(signature: str) -> Callable[[_Function], _Function]:
    """Compiles a function that Python calls, on import, for the signature's types only."""
    return cast(Callable[[_Function], _Function], numba.njit(signature, cache=True, **_OPTIONS))


single = np.float32
"""Makes a number of single precision, of which a vector holds twice as many."""

_LOG2_E = single(1.4426950408889634)
_LN2 = single(0.6931471805599453)
_ROUNDER = single(1.5 * 2**23)
_LOWEST = single(-87)

_MANTISSA_BITS = np.int32(23)
_BIAS = np.int32(127)
_ONE_LESS_SQRT_HALF = np.int32(0x3F800000 - 0x3F3504F3)


@contracting
def exp_below_zero(x: np.float32) -> np.float32:
    """Computes exp(x) for x <= 0, with an absolute error below 2e-7."""
    x = x if x > _LOWEST else _LOWEST
    shifted = x * _LOG2_E + _ROUNDER
    whole = shifted - _ROUNDER
    r = x - whole * _LN2
    # The polynomial of degree 6 through exp at the Chebyshev nodes of [-ln 2 / 2, ln 2 / 2].
    series = r * single(0.00139411084) + single(0.0083751264)
    series = r * series + single(0.0416663529)
    series = r * series + single(0.166664155)
    series = r * series + single(0.5)
    series = r * series + single(1)
    series = r * series + single(1)
    bits = single(shifted).view(np.int32)
    return series * np.int32((bits + _BIAS) << _MANTISSA_BITS).view(np.float32)


@contracting
def log(x: np.float32) -> np.float32:
    """Computes the logarithm of a normal x > 0, with an absolute or relative error below 2e-7."""
    # The mantissa is in [sqrt(1/2), sqrt(2)); log = 2 artanh((mantissa - 1) / (mantissa + 1)).
    bits = single(x).view(np.int32)
    whole = ((bits + _ONE_LESS_SQRT_HALF) >> _MANTISSA_BITS) - _BIAS
    mantissa = np.int32(bits - (whole << _MANTISSA_BITS)).view(np.float32)
    z = (mantissa - single(1)) / (mantissa + single(1))
    square = z * z
    series = square * single(1 / 9) + single(1 / 7)
    series = square * series + single(1 / 5)
    series = square * series + single(1 / 3)
    series = square * series + single(1)
    return single(whole) * _LN2 + single(2) * z * series
