"""The identity of a model, without its weights. Needs no torch."""

from __future__ import annotations

import dataclasses

from pipeline.models.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """A model's name, architecture, weights and preprocessing.

    Attributes:
      name: name in results: the entry of `--models`, with the tag of the weights.
      architecture: the source's name for the architecture.
      weights: where the weights came from.
      weights_sha256: SHA-256 of all named parameters and buffers, whatever file they came from.
      preprocessing: data configuration.
      num_outputs: size of the head.
    """

    name: str
    architecture: str
    weights: str
    weights_sha256: str
    preprocessing: Preprocessing
    num_outputs: int
