"""Custom variants and fills: `--variants python:my_variants:silhouette`, `--renderings python:...`.

A variant's function takes a `Layer` and returns a picture, and the variant is named after the
function. A fill's function takes an image and its hole, which is the annotated box, and returns the
filled image; it gives a variant for each of `FILLED`, named after the base and the function.

The configuration records `python:my_variants:silhouette@VERSION`, and for a fill
`mixed_same=python:my_fills:mean@VERSION`. The version is the function's attribute `version`, or 1.
Its author raises it when the pictures change, so that they are composed again.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pipeline.errors import JobError, UsageError
from pipeline.runtime.custom_functions import PREFIX, call_for_array, import_function
from transforms.geometry import Mask, Pixels
from transforms.layers import Layer
from transforms.renderings import Rendering, box_hole
from transforms.variants import FILLED, VARIANTS, Variant, VariantName, variants_of


def versioned(variants: Sequence[str], renderings: Iterable[str] = ()) -> tuple[str, ...]:
    """Returns the entries of a configuration, with `@VERSION` after each custom function.

    Raises UsageError if a function is not found, or its name or version is not valid.
    """
    if fills := [name for name in variants if "=" in name]:
        raise UsageError(f"--variants {fills[0]}: unknown variant; --renderings names fills")
    return (
        *(_load(name, "--variants")[1] if name.startswith(PREFIX) else name for name in variants),
        *(f"{base}={_load(name, '--renderings')[1]}" for name in renderings for base in FILLED),
    )


def find_variants(entries: Iterable[str]) -> dict[VariantName, Variant]:
    """Finds the variants of a configuration; returns them by name.

    Raises JobError if a function is not found, or its version is not the one in the configuration.
    """
    return {
        VariantName.parse(entry): VARIANTS.get(entry) or _custom_variant(entry) for entry in entries
    }


def _custom_variant(entry: str) -> Variant:
    base, _, target = entry.rpartition("=")
    try:
        function, present = _load(target, "--renderings" if base else "--variants")
    except UsageError as error:
        raise JobError(f"{error}, on every worker") from error
    if present != target:
        raise JobError(
            f"{entry}: its version is {present.rpartition('@')[2]} here. Run the same command again"
        )
    name, paint = VariantName.parse(entry), functools.partial(_paint, target, function)
    if not base:
        return Variant(str(name), paint)
    return variants_of(Rendering(name.rendering, hole=box_hole, paint=paint))[str(name)]


def _paint(entry: str, function: Callable[..., Any], shown: Layer | Pixels, *hole: Mask) -> Pixels:
    """Calls a custom function on copies, so that it cannot change what others read."""
    shape = shown.image.shape if isinstance(shown, Layer) else shown.shape
    copied = functools.partial(function, *copy.deepcopy((shown, *hole)))
    return call_for_array(copied, entry, dtype=np.uint8, shape=shape)


def _load(entry: str, flag: str) -> tuple[Callable[..., Any], str]:
    """Imports a flag's function; returns (the function, the entry with its present version).

    Raises UsageError if there is no such function, or its name or version is not valid.
    """
    entry, origin = entry.partition("@")[0], f"{flag} {entry}"
    function = import_function(
        entry.partition(PREFIX)[2],
        origin,
        f"{PREFIX}my_{'fills:mean' if flag == '--renderings' else 'variants:silhouette'}",
    )
    version = getattr(function, "version", 1)
    if type(version) is not int or version < 0:
        raise UsageError(f"{origin}: its version must be a whole number from 0")
    if str(VariantName.parse(versioned := f"{entry}@{version}")) == versioned:
        raise UsageError(f"{origin}: name it with small letters, digits and underscores only")
    return function, versioned
