"""Functions of the user's, which `--models`, `--variants` and `--segmenter` name as
`python:MODULE:FUNCTION`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import JobError, UsageError, in_short

PREFIX = "python:"


def module_of(path: str) -> str:
    """The module that a file of Python is when its folder is on PYTHONPATH.

    >>> module_of("lib/mynet.py")
    'mynet'
    """
    return path.rpartition("/")[2].removesuffix(".py")


def import_function(target: str, given: str, example: str) -> Callable[..., Any]:
    """Imports a function.

    Args:
      target: `MODULE:FUNCTION`; the module is found on PYTHONPATH.
      given: flag and entry that name it, for messages.
      example: how an entry looks, for messages.

    Raises:
      UsageError: there is none.
    """
    path, colon, name = target.partition(":")
    if not colon or not path or not name:
        raise UsageError(f"{given} must look like {example}")
    if path.endswith(".py"):
        raise UsageError(
            f"{given}: say {PREFIX}{module_of(path)}:{name}, with its folder on PYTHONPATH"
        )
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        where = f"{path} is" if error.name == path else f"{path} imports {error.name}, which is"
        raise UsageError(f"{given}: {where} not found; put its folder on PYTHONPATH") from error
    except Exception as error:  # Whatever stands in someone's module.
        raise UsageError(
            f"{given}: {path} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{given}: {path} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def array_of(
    call: Callable[[], Any],
    given: str,
    *,
    dtype: type[np.generic],
    shape: tuple[int, ...],
    passed_on: type[Exception] = MemoryError,
) -> NDArray[Any]:
    """Calls a function that makes an array.

    Args:
      call: the function with its arguments.
      given: what names it, for messages.
      dtype, shape: of the array that is expected.
      passed_on: what else it may raise than MemoryError.

    Raises:
      JobError: it raised anything else, or returned something else.
    """
    try:
        found = call()
    except (MemoryError, passed_on):
        raise
    except Exception as error:  # Whatever stands in someone's function.
        raise JobError(f"{given} raised {type(error).__name__}: {in_short(error)}") from error
    if not isinstance(found, np.ndarray):
        shown = type(found).__name__
    elif found.dtype != dtype or found.shape != shape:
        shown = f"{found.dtype} of shape {found.shape}"
    else:
        return np.ascontiguousarray(found)
    raise JobError(f"{given} returned {shown}, not {np.dtype(dtype)} of shape {shape}")
