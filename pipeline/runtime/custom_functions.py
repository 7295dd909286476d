"""Users' own functions, `python:MODULE:FUNCTION` in `--models`, `--variants` and others."""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import JobError, UsageError, one_line, refuse_first, text_of

PREFIX = "python:"

imported_digests: dict[str, str] = {}
"""Digest of each module of functions that this process has imported, when it was imported."""

T = TypeVar("T")


def module_of(path: str) -> str:
    """Returns the name by which a Python file can be imported if its folder is on PYTHONPATH.

    >>> module_of("lib/mynet.py")
    'mynet'
    """
    return path.rpartition("/")[2].removesuffix(".py")


def digest_of_module(name: str) -> str:
    """Returns the SHA-256 of a module's file; "" if there is none."""
    try:
        spec = importlib.util.find_spec(name)
        return hashlib.sha256(Path((spec and spec.origin) or "").read_bytes()).hexdigest()
    except (ImportError, OSError, ValueError):
        return ""


def call_own(code: Callable[..., T], *args: Any) -> T:
    """Calls code of the user's, whose `sys.exit` must not end the process of a job.

    Raises RuntimeError for a BaseException that would end the process, except KeyboardInterrupt.
    """
    try:
        return code(*args)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RuntimeError(
            f"{type(error).__name__}({text_of(error)}) would end the process"
        ) from error


def import_function(target: str, origin: str, example: str) -> Callable[..., Any]:
    """Imports `MODULE:FUNCTION` from PYTHONPATH.

    `origin`, the flag and entry that name it, and `example`, a valid entry, are for messages.
    """
    path, colon, name = target.partition(":")
    reasons = {
        f" must look like {example}": not (colon and path and name),
        f": say {PREFIX}{module_of(path)}:{name}, with its folder on PYTHONPATH": path.endswith(
            ".py"
        ),
    }
    refuse_first(reasons, origin)
    try:
        imported_digests.setdefault(path, digest_of_module(path))
        module = call_own(importlib.import_module, path)
    except ModuleNotFoundError as error:
        # A package that the module would be in may be missing, too.
        is_ours = f"{path}.".startswith(f"{error.name}.")
        culprit = f"{error.name} is" if is_ours else f"{path} imports {error.name}, which is"
        raise UsageError(f"{origin}: {culprit} not found; put its folder on PYTHONPATH") from error
    except Exception as error:  # A user's module may raise anything.
        raise UsageError(
            f"{origin}: {path} cannot be imported ({type(error).__name__}: {text_of(error)})"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{origin}: {path} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def call_for_array(
    call: Callable[[], Any],
    origin: str,
    *,
    dtype: type[np.generic],
    shape: tuple[int, ...],
    passed_on: type[Exception] = MemoryError,
) -> NDArray[Any]:
    """Calls a function and checks that it returns an array with the right dtype and shape.

    Messages call the function `origin`. Errors of `passed_on` are raised unchanged. Raises JobError
    if the function raised another error, or returned anything else.
    """
    try:
        result = call_own(call)
    except (MemoryError, passed_on):
        raise
    except Exception as error:  # A user's function may raise anything.
        raise JobError(f"{origin} raised {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(result, np.ndarray):
        form = type(result).__name__
    elif result.dtype != dtype or result.shape != shape:
        form = f"{result.dtype} of shape {result.shape}"
    else:
        return np.ascontiguousarray(result)
    raise JobError(f"{origin} returned {form}, not {np.dtype(dtype)} of shape {shape}")
