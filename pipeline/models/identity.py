"""What a model is, without its weights in memory. It needs no torch."""

from __future__ import annotations

import dataclasses

from pipeline.models.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """Which model, with which weights, and what it does to pictures.

    Attributes:
      name: as results call it: the entry of `--models`, with the tag of the weights.
      architecture: what the module is, by the name its source has for it.
      weights: where they came from.
      weights_sha256: of all parameters and buffers by name, whatever file held them.
      preprocessing: its data configuration.
      num_outputs: size of the head.
    """

    name: str
    architecture: str
    weights: str
    weights_sha256: str
    preprocessing: Preprocessing
    num_outputs: int
