"""Decorators that compile the kernels, without the GIL and without Python's division checks."""

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
