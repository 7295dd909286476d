"""Models: what a `--models` entry means, and how it is loaded. One module for each source."""

from __future__ import annotations

from pipeline.models.expand import expand_models
from pipeline.models.loaded import (
    IN9_MEAN,
    IN9_STD,
    LoadedModel,
    Preprocessing,
    check_head,
    weights_hash,
)
from pipeline.models.registry import DEFAULT_MODEL, check_model, load_model

__all__ = [
    "DEFAULT_MODEL",
    "IN9_MEAN",
    "IN9_STD",
    "LoadedModel",
    "Preprocessing",
    "check_head",
    "check_model",
    "expand_models",
    "load_model",
    "weights_hash",
]
