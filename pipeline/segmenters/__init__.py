"""Segmenters by the name that `--segmenter` gives: those of `transforms.segmentation`, and
networks in files."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.segmenters.network import PREFIX, network_segmenter
from transforms.segmentation import SEGMENTERS, Segmenter

__all__ = ["find_segmenter", "takes_masks"]


def find_segmenter(name: str, parameters: Sequence[str] = (), path: str = "") -> Segmenter:
    """The segmenter of a configuration.

    Args:
      name: such as `grabcut`, or `onnx:u2net.onnx`.
      parameters: of a network, as `read_network` gives them.
      path: where the network lies now; not needed to know what decides its masks.

    Raises:
      ValueError: an unknown name, or a network without parameters.
    """
    if name.startswith(PREFIX):
        return network_segmenter(name, parameters, path)
    if name not in SEGMENTERS or parameters:
        known = ", ".join([*SEGMENTERS, f"{PREFIX}FILE"])
        raise ValueError(f"--segmenter must be one of {known}: got {name!r}")
    return SEGMENTERS[name]


def takes_masks(name: str) -> bool:
    """Whether a segmenter needs `--masks`."""
    return name in SEGMENTERS and SEGMENTERS[name].segment is None
