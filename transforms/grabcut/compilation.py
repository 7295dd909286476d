"""How the kernels are compiled: without the GIL, without Python's division checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

Integer = int | np.integer[Any]
"""Kernels do not tell Python's integers from numpy's."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

# A check for division by zero is a branch, which keeps LLVM from vectorising a loop.
_OPTIONS = {"nogil": True, "error_model": "numpy"}


def helper(function: _Function) -> _Function:
    """A function that only other compiled functions call; it becomes part of them."""
    compiled: _Function = numba.njit(**_OPTIONS)(function)
    return compiled


def contracting(function: _Function) -> _Function:
    """A helper in which a * b + c may be rounded once instead of twice."""
    compiled: _Function = numba.njit(fastmath={"contract"}, **_OPTIONS)(function)
    return compiled


def entry(signature: str) -> Callable[[_Function], _Function]:
    """A function that Python calls: compiled, or loaded from the cache, when its module
    is imported, for these argument types and no others."""

    def compile_now(function: _Function) -> _Function:
        compiled: _Function = numba.njit(signature, cache=True, **_OPTIONS)(function)
        return compiled

    return compile_now
