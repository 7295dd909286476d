"""What entries of `--models` say by themselves, without the libraries that load them."""

from __future__ import annotations

import os

DEFAULT_MODEL = "efficientnet_lite0"


def place_of(entry: str) -> str:
    """The file, or the folder of this machine, that an entry takes a model from; empty for a
    name that something else knows.

    >>> place_of("resnet50=gs://bucket/a.pth"), place_of("onnx:b.onnx"), place_of("resnet50")
    ('gs://bucket/a.pth', 'b.onnx', '')
    """
    prefix, colon, rest = entry.partition(":")
    if not colon or "=" in prefix:
        return entry.partition("=")[2]
    if prefix == "onnx":
        return rest
    if prefix in ("hf", "open_clip"):
        # Their libraries look here before they ask the hub.
        weights = rest.partition(":")[2]
        return next((place for place in (rest, weights) if os.path.exists(place)), "")
    return ""
