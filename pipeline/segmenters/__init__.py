"""Segmenters by the name that `--segmenter` gives: the methods of `transforms.segmentation`, masks
that come with the images, and custom functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.runtime.custom_functions import PREFIX
from pipeline.segmenters.custom import CustomFunction, read_parameters
from transforms.segmentation import Segmenter, describe_segmenter

__all__ = ["find_segmenter", "parameters_of"]


def find_segmenter(name: str, parameters: Sequence[str] = ()) -> Segmenter:
    """Returns the segmenter of a configuration, with its function.

    Arguments and errors are those of `describe_segmenter`. A custom function is imported when the
    first picture arrives.
    """
    segmenter = describe_segmenter(name, parameters)
    if name.startswith(PREFIX):
        return dataclasses.replace(segmenter, segment=CustomFunction(name, tuple(parameters)))
    return segmenter


def parameters_of(name: str) -> tuple[str, ...]:
    """Returns the parameters of a custom function, as `read_parameters` does; empty for other
    segmenters. Raises UsageError like `read_parameters`."""
    return read_parameters(name) if name.startswith(PREFIX) else ()
