"""Segmenters by the name that `--segmenter` gives: those of `transforms.segmentation`, given
masks, and functions of the user's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.runtime.custom_functions import PREFIX
from pipeline.segmenters.custom import CustomFunction, read_parameters
from transforms.segmentation import Segmenter, describe_segmenter

__all__ = ["find_segmenter", "parameters_of"]


def find_segmenter(name: str, parameters: Sequence[str] = ()) -> Segmenter:
    """The segmenter of a configuration, with its function.

    Arguments and errors as `describe_segmenter`. A function of the user's is imported when the
    first picture comes.
    """
    segmenter = describe_segmenter(name, parameters)
    if name.startswith(PREFIX):
        return dataclasses.replace(segmenter, segment=CustomFunction(name, tuple(parameters)))
    return segmenter


def parameters_of(name: str) -> tuple[str, ...]:
    """What decides the masks of a function of the user's, as `read_parameters` gives it; nothing
    of other names. Raises UsageError as that does."""
    return read_parameters(name) if name.startswith(PREFIX) else ()
