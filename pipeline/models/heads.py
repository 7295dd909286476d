"""Heads that are fitted on features of a frozen encoder: a linear probe, or nearest neighbours.

A head is a checkpoint (`pipeline.models.checkpoint`), with the encoder's entry in its metadata:

probe   weight (classes, width) and bias (classes,) of a linear layer
knn     features (n, width) of the n pictures of the fit, and their labels (n,)
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch.nn import functional

from pipeline.errors import JobError
from pipeline.models.checkpoint import digest_of_classes, read_metadata
from pipeline.models.library_names import read_state
from pipeline.models.source import LoadedModel
from pipeline.storage.files import files_of
from transforms.taxonomy import Taxonomy

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Neighbours that vote, and the temperature of their votes (Caron et al. 2021, DINO)."""


class Neighbours(torch.nn.Module):
    """A head by votes of the nearest features of the fit, by cosine.

    A neighbour's vote has the weight exp(cosine / `TEMPERATURE`). Outputs are logarithms of the
    classes' shares of the votes, at least that of 1e-12.

    Args:
      features: (n, width) float32.
      labels: (n,) int64 in [0, classes).
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("features", functional.normalize(features, dim=1))
        self.register_buffer("votes", functional.one_hot(labels.long(), classes).float())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        bank, votes = self.get_buffer("features"), self.get_buffer("votes")
        cosines = functional.normalize(features, dim=1) @ bank.T
        nearest = cosines.topk(min(NEIGHBOURS, len(bank)), dim=1)
        weights = (nearest.values / TEMPERATURE).softmax(dim=1)
        return (weights[..., None] * votes[nearest.indices]).sum(dim=1).clamp_min(1e-12).log()


class Linear(torch.nn.Module):
    """A linear head. Its tensors are buffers, which nothing converts to another precision."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return functional.linear(features, self.get_buffer("weight"), self.get_buffer("bias"))


class WithHead(torch.nn.Module):
    """An encoder, which maps pictures to (n, width) features, and a head, always in float32."""

    def __init__(self, encoder: torch.nn.Module, head: torch.nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.encoder(pictures)
        with torch.autocast(pictures.device.type, enabled=False):
            outputs: torch.Tensor = self.head(features.float())
        return outputs


def head_of(state: Mapping[str, torch.Tensor], classes: int) -> torch.nn.Module:
    """Makes a head from its stored tensors."""
    if "features" in state:
        return Neighbours(state["features"], state["labels"], classes)
    return Linear(state["weight"], state["bias"])


def attach(encoder: LoadedModel, state: Mapping[str, torch.Tensor], classes: int) -> LoadedModel:
    """Returns an encoder with the head of these tensors."""
    module = WithHead(encoder.module, head_of(state, classes)).eval().requires_grad_(False)
    return dataclasses.replace(encoder, module=module, num_outputs=classes)


def with_head(encoder: LoadedModel, path: str, taxonomy: Taxonomy) -> LoadedModel:
    """Returns an encoder with the head in a file. Raises JobError if there is none that fits it."""
    trained = read_metadata(path) if files_of(path).info(path) else None
    if trained is None or "head_version" not in trained.settings:
        raise JobError(f"{encoder.name} has no fitted head, {path}")
    fitted = trained.settings["weights_sha256"], trained.classes
    if fitted != (encoder.weights_sha256, digest_of_classes(taxonomy)):
        raise JobError(f"{path} is the head of other weights than {encoder.name}, or other classes")
    return attach(encoder, read_state(path), taxonomy.num_labels)
