"""Custom variants: `--variants all,python:my_variants:silhouette`.

The user's function takes a `Layer` and returns a picture, and the variant is named after the
function. The configuration of a dataset records `python:my_variants:silhouette@VERSION`. The
version is the function's attribute `version`, 1 if it has none. The function's author raises it
when the pictures change, so that they are composed again.
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
    """Returns the entries of `--variants`, with `@VERSION` after each custom function.

    Raises:
      UsageError: a function is not found, or its name or version is not valid.
    """
    versioned_entries = []
    for entry in entries:
        if entry.startswith(PREFIX):
            entry = f"{entry.partition('@')[0]}@{_version(_function(entry), entry)}"
            if name_of(entry) == entry:
                raise UsageError(
                    f"--variants {entry.partition('@')[0]}: name the function with small letters, "
                    "digits and underscores only"
                )
        versioned_entries.append(entry)
    return tuple(versioned_entries)


def custom_names(entries: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the custom variants among entries of `--variants`."""
    return tuple(
        entry.partition("@")[0].rpartition(":")[2] for entry in entries if entry.startswith(PREFIX)
    )


def find_variants(entries: Iterable[str]) -> dict[str, Variant]:
    """Finds the variants of a configuration; returns them by name.

    Args:
      entries: variants of the configuration.

    Raises:
      JobError: a function is not found, or its version is not the one in the configuration.
    """
    return {name_of(entry): VARIANTS.get(entry) or _custom_variant(entry) for entry in entries}


def _custom_variant(entry: str) -> Variant:
    try:
        function = _function(entry)
        version = _version(function, entry)
    except UsageError as error:
        raise JobError(f"{error}, on every worker") from error
    if str(version) != entry.rpartition("@")[2]:
        raise JobError(f"{entry}: its version is {version} here. Run the same command again")
    return Variant(name_of(entry), functools.partial(_paint, entry, function))


def _paint(entry: str, function: Callable[[Layer], Any], layer: Layer) -> Image:
    """Calls a custom function on a copy of the layer, so that it cannot change the layer."""
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
    """Imports the function of an entry. Raises UsageError if it is not found."""
    target = entry.removeprefix(PREFIX).partition("@")[0]
    return import_function(target, f"--variants {entry}", f"{PREFIX}my_variants:silhouette")


def _version(function: Callable[[Layer], Any], entry: str) -> int:
    version = getattr(function, "version", 1)
    if type(version) is not int or version < 0:
        raise UsageError(f"--variants {entry}: its version must be a whole number from 0")
    return version
