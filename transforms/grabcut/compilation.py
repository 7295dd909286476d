"""What kernels are compiled with: decorators, and exp and log that LLVM vectorises.

The decorators compile without the GIL and without Python's division checks.

exp and log have no calls, branches or tables, so that LLVM vectorises loops that use them. Both
split off a power of two through the bits of a float64, and use a series for the remaining factor.
`exp_below_zero` rounds to a whole number by adding 1.5 * 2^52, which leaves the whole number in the
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


_LOG2_E = 1.4426950408889634
# ln 2 as the sum of two numbers. The first has few bits, so that whole * _LN2_HIGH is exact; the
# second is small.
_LN2_HIGH = 6.93145751953125e-1
_LN2_LOW = 1.42860682030941723212e-6
_ROUNDER = 1.5 * 2.0**52
_LOWEST = -700.0

_MANTISSA_BITS = np.int64(52)
_BIAS = np.int64(1023)
_TWO_TO_52 = np.int64(0x4330000000000000)
_ONE_LESS_SQRT_HALF = np.int64(0x3FF0000000000000 - 0x3FE6A09E667F3BCD)


@contracting
def exp_below_zero(x: float) -> float:
    """Computes exp(x) for x <= 0, with a relative error below 1e-10; exp(-700) for x < -700."""
    x = x if x > _LOWEST else _LOWEST
    shifted = x * _LOG2_E + _ROUNDER
    whole = shifted - _ROUNDER
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    # The polynomial of degree 7 through exp at the Chebyshev nodes of [-ln 2 / 2, ln 2 / 2].
    series = 0.00019907569963481945 * r + 0.0013948578345966051
    series = r * series + 0.00833328353718561
    series = r * series + 0.04166621831906842
    series = r * series + 0.16666666786318582
    series = r * series + 0.500000010772924
    series = r * series + 0.9999999999955074
    series = r * series + 0.9999999999595617
    bits = np.float64(shifted).view(np.int64)
    return series * np.int64((bits + _BIAS) << _MANTISSA_BITS).view(np.float64)


@contracting
def log(x: float) -> float:
    """Computes the logarithm of a normal x > 0, with an error below 1e-10."""
    # The mantissa is in [sqrt(1/2), sqrt(2)); log = 2 artanh((mantissa - 1) / (mantissa + 1)).
    bits = np.float64(x).view(np.int64)
    exponent = (bits + _ONE_LESS_SQRT_HALF) >> _MANTISSA_BITS
    mantissa = np.int64(bits - ((exponent - _BIAS) << _MANTISSA_BITS)).view(np.float64)
    whole = np.int64(exponent | _TWO_TO_52).view(np.float64) - (2.0**52 + 1023)
    z = (mantissa - 1) / (mantissa + 1)
    square = z * z
    series = square * (1 / 13) + 1 / 11
    series = square * series + 1 / 9
    series = square * series + 1 / 7
    series = square * series + 1 / 5
    series = square * series + 1 / 3
    series = square * series + 1
    return whole * (_LN2_HIGH + _LN2_LOW) + 2 * z * series
