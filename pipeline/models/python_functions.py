"""User-defined Python functions that return a `torch.nn.Module`: `python:my_models:trained`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pipeline.errors import JobError, UsageError, in_short
from pipeline.models.source import LoadedModel, Recipe, Source, measured_model
from pipeline.runtime.custom_functions import PREFIX, import_function
from transforms.taxonomy import Taxonomy


class PythonFunctions(Source):
    """`python:MODULE:FUNCTION`; the function takes no arguments and returns a `torch.nn.Module`,
    or (module, dict of `Preprocessing` settings)."""

    form = "python:MODULE:FUNCTION"
    text = "a function that returns a torch.nn.Module; MODULE is found on PYTHONPATH"

    def check(self, spec: str) -> None:
        _import(spec)

    def load(self, spec: str, taxonomy: Taxonomy) -> LoadedModel:
        module, settings = _call(spec)
        return measured_model(
            settings,
            where=f"{spec}: preprocessing",
            taxonomy=taxonomy,
            name=spec,
            architecture=type(module).__name__,
            weights=spec.removeprefix(PREFIX),
            module=module.float(),
        )

    def origin(self, spec: str, model: LoadedModel) -> None:
        """Returns None: the function may load its weights from anywhere, so a change of them could
        not be detected."""

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        # `load` gives each of these models its spec as its name.
        return _call(name)[0].float()


def _import(spec: str) -> Callable[[], Any]:
    """Imports the function that an entry names. Raises UsageError if there is no such function."""
    target = spec.removeprefix(PREFIX)
    return import_function(target, f"--models {spec}", f"{PREFIX}my_models:trained")


def _call(spec: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Calls the function that an entry names; returns its module and its `Preprocessing` settings,
    which are empty if it returns a module alone.

    Raises:
      UsageError: there is no such function.
      JobError: the function raised an error, or returned anything else.
    """
    try:
        result = _import(spec)()
    except (UsageError, JobError):
        raise
    except Exception as error:  # A user's function can raise anything.
        raise JobError(f"{spec} raised {type(error).__name__}: {in_short(error)}") from error
    module, settings = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(module, torch.nn.Module) or not isinstance(settings, dict):
        raise JobError(
            f"{spec} must return a torch.nn.Module, or (module, preprocessing as a dict), not "
            f"{type(result).__name__}"
        )
    return module, settings
