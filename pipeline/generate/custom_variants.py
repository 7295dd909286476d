"""Variants of the user's: `--variants all,python:my_variants:silhouette`.

The function takes a `Layer` and returns a picture. Its name is the variant's. A configuration
holds `python:my_variants:silhouette@VERSION`, where the version is the function's attribute
`version`, or 1: who changes what it paints raises it, so that it is painted again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipeline.errors import JobError, UsageError
from pipeline.runtime.custom_functions import PREFIX, call_for_array, import_function
from transforms.layers import Layer
from transforms.variants import VARIANTS, Image, Variant, name_of


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


def custom_names(entries: Iterable[str]) -> tuple[str, ...]:
    """Names of the user's variants among entries of `--variants`."""
    names = (
        entry.partition("@")[0].rpartition(":")[2] for entry in entries if entry.startswith(PREFIX)
    )
    return tuple(names)


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
    return call_for_array(
        functools.partial(function, copied), entry, dtype=np.uint8, shape=layer.image.shape
    )


def _function(entry: str) -> Callable[[Layer], Any]:
    """Imports the function. Raises UsageError if there is none."""
    target = entry.removeprefix(PREFIX).partition("@")[0]
    return import_function(target, f"--variants {entry}", f"{PREFIX}my_variants:silhouette")


def _version(function: Callable[[Layer], Any], entry: str) -> int:
    version = getattr(function, "version", 1)
    if type(version) is not int or version < 0:
        raise UsageError(f"--variants {entry}: its version must be a whole number, from 0 on")
    return version
