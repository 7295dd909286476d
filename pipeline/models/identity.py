"""The identity of a model, without its weights. This module does not import torch."""

from __future__ import annotations

import dataclasses

from pipeline.models.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """A model's name, architecture, weights and preprocessing.

    Attributes:
      name: name of the model in results: the entry of `--models`, with the tag of the weights.
      architecture: name by which the model's source knows the architecture.
      weights: description of where the weights came from, such as a file name or a repository.
      weights_sha256: SHA-256 of all named parameters and buffers. It does not depend on the file
        format.
      preprocessing: size, crop and normalisation of the input.
      num_outputs: number of the model's outputs.
    """

    name: str
    architecture: str
    weights: str
    weights_sha256: str
    preprocessing: Preprocessing
    num_outputs: int
