"""Decorators that compile the kernels, without the GIL and without Python's division checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

Integer = int | np.integer[Any]
"""An integer of Python or numpy, between which kernels do not distinguish."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

# The check for division by zero is a branch, which would keep LLVM from vectorising loops.
_OPTIONS = {"nogil": True, "error_model": "numpy"}


def helper(function: _Function) -> _Function:
    """Compiles a function that only compiled functions call; it becomes part of them."""
    compiled: _Function = numba.njit(**_OPTIONS)(function)
    return compiled


def contracting(function: _Function) -> _Function:
    """Compiles a helper in which a * b + c may be rounded once instead of twice."""
    compiled: _Function = numba.njit(fastmath={"contract"}, **_OPTIONS)(function)
    return compiled


def entry(signature: str) -> Callable[[_Function], _Function]:
    """Compiles a function that Python calls, for the argument types of the signature only.

    It is compiled, or loaded from the cache, when its module is imported.
    """

    def compile_now(function: _Function) -> _Function:
        compiled: _Function = numba.njit(signature, cache=True, **_OPTIONS)(function)
        return compiled

    return compile_now
