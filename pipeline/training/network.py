"""Networks to train: timm architectures with one output per superclass."""

from __future__ import annotations

import dataclasses

import timm
import torch

from pipeline.errors import JobError, UsageError
from pipeline.models.packaged import EFFICIENTNETS
from pipeline.models.preprocessing import Preprocessing
from pipeline.models.registry import check_model, load_model
from pipeline.models.source import closest
from pipeline.models.timm_names import timm_model
from transforms.hashing import keyed_hash
from transforms.taxonomy import Taxonomy


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network to train.

    Attributes:
      architecture: timm's name of the architecture, as in `--models ARCH=FILE`.
      module: the module, in float32 on the CPU.
      preprocessing: preprocessing that evaluation will use.
      pretrained: name and SHA-256 of the weights that the training starts from, None for random
        weights.
    """

    architecture: str
    module: torch.nn.Module
    preprocessing: Preprocessing
    pretrained: str | None


def check_architecture(arch: str, *, pretrained: bool, weights: str | None) -> None:
    """Checks `--arch` without loading weights.

    Raises:
      UsageError: timm has no such architecture (the message suggests similar names), or with
        `pretrained` for the reasons of `check_model`.
    """
    name = EFFICIENTNETS.get(arch, arch)
    if not timm.is_model(name.partition(".")[0]):
        hint = closest(name.partition(".")[0], [*EFFICIENTNETS, *timm.list_models()])
        raise UsageError(f"--arch {arch}: timm has no such architecture{hint}")
    if pretrained:
        check_model(arch, weights)


def build_network(
    arch: str,
    taxonomy: Taxonomy,
    *,
    seed: int,
    pretrained: bool = False,
    weights: str | None = None,
) -> Network:
    """Builds a network. Its random weights depend only on the architecture and the seed.

    Args:
      arch: timm's name, or one of `EFFICIENTNETS`.
      taxonomy: taxonomy; the network gets one output for each of its superclasses.
      seed: seed of the random weights.
      pretrained: whether to start from weights for ImageNet. The head starts from random weights in
        any case.
      weights: folder of `in9 models fetch`, if any.

    Raises:
      UsageError: for the reasons of `check_architecture`, or the network cannot be built.
      JobError: the weights cannot be fetched or read, or the network's head cannot be replaced.
    """
    check_architecture(arch, pretrained=pretrained, weights=weights)
    outputs = taxonomy.num_labels
    loaded = load_model(arch, weights) if pretrained else None
    # Initialisation uses torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_hash(seed, "initialisation", "") >> 1)
        if loaded is None:
            try:
                module = timm.create_model(EFFICIENTNETS.get(arch, arch), num_classes=outputs)
            except (RuntimeError, ValueError, AssertionError) as error:
                raise UsageError(f"--arch {arch} cannot be built: {error}") from error
        else:
            module = loaded.module
            reset = getattr(module, "reset_classifier", None)
            if reset is None:
                raise JobError(f"{arch} has no head that can be replaced")
            reset(outputs)
    described = timm_model(arch, module, "", taxonomy)
    # `timm_model` turns gradients off, for evaluation.
    module.requires_grad_(True)
    return Network(
        # A network with random weights must not carry the tag of pretrained weights.
        architecture=described.architecture if loaded else EFFICIENTNETS.get(arch, arch),
        module=module,
        preprocessing=described.preprocessing,
        pretrained=f"{loaded.name} {loaded.weights_sha256}" if loaded else None,
    )
