"""A model in memory, wherever it came from: what evaluation, attack and saliency work with."""

from __future__ import annotations

import dataclasses
import hashlib
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipeline.errors import JobError, in_short
from pipeline.models.identity import ModelIdentity
from pipeline.models.preprocessing import Preprocessing
from transforms.scoring import labels_of_outputs
from transforms.taxonomy import Taxonomy


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel(ModelIdentity):
    """A model in memory.

    Attributes:
      module: takes (n, 3, S, S) float32, normalised, and gives (n, outputs) logits; in
        evaluation mode, on the CPU, float32.
      recipe: what, beside the name, its source builds the module from before it has weights;
        fit for JSON.
    """

    module: torch.nn.Module
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def identity(self) -> ModelIdentity:
        """Which model it is, which outlives it in memory."""
        names = [field.name for field in dataclasses.fields(ModelIdentity)]
        return ModelIdentity(**{name: getattr(self, name) for name in names})


def loaded_model(
    *,
    name: str,
    architecture: str,
    weights: str,
    module: torch.nn.Module,
    preprocessing: Preprocessing,
    num_outputs: int,
    recipe: Mapping[str, Any] | None = None,
    weights_sha256: str | None = None,
) -> LoadedModel:
    """A `LoadedModel` of a module that has its weights, made ready for evaluation.

    Arguments are the attributes. Without `weights_sha256` it is `weights_hash` of the module.
    """
    module.eval().requires_grad_(False)
    return LoadedModel(
        name=name,
        architecture=architecture,
        weights=weights,
        weights_sha256=weights_sha256 or weights_hash(module),
        module=module,
        preprocessing=preprocessing,
        num_outputs=num_outputs,
        recipe=recipe or {},
    )


def weights_hash(module: torch.nn.Module) -> str:
    """Hexadecimal SHA-256 of all parameters and buffers: names, types, shapes and values.

    Raises:
      JobError: the module keeps state that is no tensor.
    """
    return state_hash(module.state_dict())


def state_hash(state: Mapping[str, Any]) -> str:
    """`weights_hash` of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if not isinstance(value, torch.Tensor):
            raise JobError(f"its state {name!r} is no tensor ({type(value).__name__})")
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\0".encode())
        digest.update(array.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def module_with(
    name: str, make: Callable[[], torch.nn.Module], state: Mapping[str, torch.Tensor]
) -> torch.nn.Module:
    """Builds a module around its weights, which are not copied unless they lie transposed in
    memory: the same values in another order would be added up in another order.

    It is made without memory, and so without the random weights that take most of the time of
    making a large one; again with memory if it holds tensors that are no part of its state.

    Args:
      name: for the error.
      make: the module, with any weights.
      state: its state dict.

    Raises:
      JobError: the weights do not fit.
    """
    try:
        with torch.device("meta"):
            module = make()
        kinds = {key: value.dtype for key, value in module.state_dict().items()}
        fitting = {
            key: value.to(kinds.get(key, value.dtype)).contiguous() for key, value in state.items()
        }
        module.load_state_dict(fitting, assign=True)
        if not _is_on_meta(module):
            return module
    except Exception:  # Architectures that compute while they are made fail in their own ways.
        pass
    module = make()
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        # Weights of another architecture name hundreds of tensors.
        lines = [textwrap.shorten(line, 150) for line in str(error).splitlines()[:3]]
        raise JobError(f"{name}: {' '.join(lines)}") from error
    return module


def _is_on_meta(module: torch.nn.Module) -> bool:
    """Whether any tensor has no memory, be it a parameter, a buffer or a plain attribute."""
    return any(
        tensor.is_meta
        for part in module.modules()
        for tensors in (part._parameters, part._buffers, vars(part))
        for tensor in tensors.values()
        if isinstance(tensor, torch.Tensor)
    )


@torch.inference_mode()
def count_outputs(name: str, module: torch.nn.Module, side: int) -> int:
    """Size of a model's head, by a trial.

    Args:
      name: for the error.
      module: the model, in evaluation mode.
      side: of the picture in pixels.

    Raises:
      JobError: the module does not turn a picture into a row of logits.
    """
    try:
        outputs = module(torch.zeros(1, 3, side, side))
    except JobError:
        raise
    except Exception as error:  # Whatever stands in someone's forward().
        raise JobError(
            f"{name} fails on a picture of {side} x {side} "
            f"({type(error).__name__}: {in_short(error)})"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2 or len(outputs) != 1:
        shown = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs)
        raise JobError(f"{name} must give logits of shape (pictures, outputs), not {shown}")
    return int(outputs.shape[1])


@torch.inference_mode()
def takes_other_sizes(module: torch.nn.Module, side: int) -> bool:
    """Whether a model takes pictures of another size than its own, by a trial."""
    other = side // 2 // 32 * 32 or 2 * side
    try:
        module(torch.zeros(1, 3, other, other))
    except Exception:  # Architectures refuse in their own ways.
        return False
    return True


def check_head(model: LoadedModel, taxonomy: Taxonomy) -> None:
    """Raises JobError for a head that fits neither the classes nor the superclasses."""
    try:
        labels_of_outputs(model.num_outputs, taxonomy)
    except ValueError as error:
        raise JobError(f"{model.name}: {error}") from error
