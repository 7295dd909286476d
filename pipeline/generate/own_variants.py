"""Variants of the user's: `--variants all,python:my_variants:silhouette`.

The function takes a `Layer` and returns a picture. Its name is the variant's. A configuration
holds `python:my_variants:silhouette@VERSION`, where the version is the function's attribute
`version`, or 1: who changes what it paints raises it, so that it is painted again.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipeline.errors import JobError, UsageError
from transforms.layers import Layer
from transforms.variants import VARIANTS, Image, Variant, name_of

PREFIX = "python:"


def versioned(entries: Iterable[str]) -> tuple[str, ...]:
    """Entries of `--variants` with the version of each function.

    Raises:
      UsageError: there is no such function, or its name or version will not do.
    """
    found = []
    for entry in entries:
        if entry.startswith(PREFIX):
            entry = f"{entry.partition('@')[0]}@{_version(_function(entry), entry)}"
            if name_of(entry) == entry:
                raise UsageError(
                    f"--variants {entry.partition('@')[0]}: the function's name must be of small "
                    "letters, digits and underscores"
                )
        found.append(entry)
    return tuple(found)


def own_names(entries: Iterable[str]) -> tuple[str, ...]:
    """Names of the user's variants among entries of `--variants`."""
    return tuple(entry.rpartition(":")[2] for entry in entries if entry.startswith(PREFIX))


def find_variants(entries: Iterable[str]) -> dict[str, Variant]:
    """Variants by name.

    Args:
      entries: of a configuration.

    Raises:
      JobError: a function is not to be found, or not of the version that was asked for.
    """
    return {name_of(entry): VARIANTS.get(entry) or _own_variant(entry) for entry in entries}


def _own_variant(entry: str) -> Variant:
    try:
        function = _function(entry)
        version = _version(function, entry)
    except UsageError as error:
        raise JobError(f"{error}, on every worker") from error
    wanted = entry.rpartition("@")[2]
    if str(version) != wanted:
        raise JobError(f"{entry}: its version is {version} here. Run the same command again")
    return Variant(name_of(entry), functools.partial(_paint, entry, function))


def _paint(entry: str, function: Callable[[Layer], Any], layer: Layer) -> Image:
    """The picture that a function makes of a copy, so that it cannot change the layer."""
    copied = dataclasses.replace(
        layer,
        image=layer.image.copy(),
        only_bg_t=layer.only_bg_t.copy(),
        mask=layer.mask.copy(),
    )
    try:
        picture = function(copied)
    except MemoryError:
        raise
    except Exception as error:  # Whatever stands in someone's function.
        text = " ".join(str(error).split())[:200]
        raise JobError(f"{entry} raised {type(error).__name__}: {text}") from error
    if not (
        isinstance(picture, np.ndarray)
        and picture.dtype == np.uint8
        and picture.shape == layer.image.shape
    ):
        shown = (
            f"{picture.dtype} of shape {picture.shape}"
            if isinstance(picture, np.ndarray)
            else type(picture).__name__
        )
        raise JobError(f"{entry} returned {shown}, not uint8 of shape {layer.image.shape}")
    return np.ascontiguousarray(picture)


def _function(entry: str) -> Callable[[Layer], Any]:
    """Imports the function. Raises UsageError if there is none."""
    path, colon, name = entry.removeprefix(PREFIX).partition("@")[0].partition(":")
    if not colon or not path or not name:
        raise UsageError(f"--variants {entry} must look like python:my_variants:silhouette")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        where = f"{path} is" if error.name == path else f"{path} imports {error.name}, which is"
        raise UsageError(
            f"--variants {entry}: {where} not found; put its folder on PYTHONPATH"
        ) from error
    except Exception as error:  # Whatever stands in someone's module.
        raise UsageError(
            f"--variants {entry}: {path} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"--variants {entry}: {path} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def _version(function: Callable[[Layer], Any], entry: str) -> int:
    version = getattr(function, "version", 1)
    if type(version) is not int or version < 0:
        raise UsageError(f"--variants {entry}: its version must be a whole number, from 0 on")
    return version
