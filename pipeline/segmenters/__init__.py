"""Segmenters by the name that `--segmenter` gives: those of `transforms.segmentation`, and
functions of the user's."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.runtime.own_functions import PREFIX
from pipeline.segmenters.own import own_segmenter, read_parameters
from transforms.segmentation import SEGMENTERS, Segmenter

__all__ = ["find_segmenter", "parameters_of", "takes_masks"]


def find_segmenter(name: str, parameters: Sequence[str] = ()) -> Segmenter:
    """The segmenter of a configuration.

    Args:
      name: such as `grabcut`, or `python:my_segmenters:salient`.
      parameters: of `parameters_of`.

    Raises:
      ValueError: an unknown name, or parameters of another one.
    """
    if name.startswith(PREFIX):
        return own_segmenter(name, parameters)
    if name not in SEGMENTERS or parameters:
        known = ", ".join([*SEGMENTERS, f"{PREFIX}MODULE:FUNCTION"])
        raise ValueError(f"--segmenter must be one of {known}: got {name!r}")
    return SEGMENTERS[name]


def parameters_of(name: str) -> tuple[str, ...]:
    """What decides the masks of a function of the user's, as `read_parameters` gives it; nothing
    of other names. Raises UsageError as that does."""
    return read_parameters(name) if name.startswith(PREFIX) else ()


def takes_masks(name: str) -> bool:
    """Whether a segmenter needs `--masks`."""
    return name in SEGMENTERS and SEGMENTERS[name].segment is None
