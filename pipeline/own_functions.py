"""Functions of the user's, which `--models` and `--variants` name as `python:MODULE:FUNCTION`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from pipeline.errors import UsageError

PREFIX = "python:"


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
