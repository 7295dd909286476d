"""Gradients of a model's winning outputs with respect to the pixels, reduced on its device."""

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import JobError, ModelError, text_of
from pipeline.models.predict import (
    Fetched,
    Predictor,
    are_numbers,
    is_out_of_memory,
    refuse_broken,
    to_floats,
)
from pipeline.runtime.custom_functions import call_own
from transforms.saliency import Map, mass_in_mask


class Explained:
    """Which output wins for each of n pictures, and how much each pixel affects it.

    All is launched on the device, and waited for when it is asked for.

    Args:
      pictures: (n, S, S, 3) uint8, RGB.
      masks: (n, S, S) bool, True on the foreground.
      full: number of pictures of a full batch.

    Raises:
      ModelError: the model fails or gives no gradient, or memory does not suffice for a single
        picture.
    """

    def __init__(
        self, predictor: Predictor, pictures: NDArray[np.uint8], masks: NDArray[np.bool_], full: int
    ) -> None:
        pixels = to_floats(predictor.to_device(pictures))
        logits, gradients = winning_logit_gradients(predictor, pixels, full)
        self._maps = gradients.abs().amax(dim=1)
        self._masks, self._masses = masks, None
        if self._maps.device.type != "cpu":
            inside = self._maps * predictor.to_device(masks)
            sums = [each.sum((1, 2), dtype=torch.float64) for each in (inside, self._maps)]
            self._masses = Fetched(torch.stack(sums, dim=1))
        self._outputs = Fetched(logits.argmax(dim=1))
        self._valid = Fetched(torch.stack([are_numbers(logits), are_numbers(self._maps)]))

    def outputs(self) -> list[int]:
        """Returns the winning outputs. Raises ModelError if outputs or gradients are no numbers."""
        for valid, what in zip(self._valid.wait(), ("outputs", "gradients"), strict=True):
            refuse_broken(valid, what)
        outputs: list[int] = self._outputs.wait().tolist()
        return outputs

    def masses(self) -> list[float | None]:
        """Returns each map's `transforms.saliency.mass_in_mask`."""
        if self._masses is None:
            maps = self._maps.numpy()
            return [mass_in_mask(one, mask) for one, mask in zip(maps, self._masks, strict=True)]
        return [part / whole if whole > 0 else None for part, whole in self._masses.wait().tolist()]

    def map_of(self, position: int) -> Map:
        """Returns the map of a picture, (S, S) float32, >= 0."""
        return self._maps[position].cpu().numpy()


def winning_logit_gradients(
    predictor: Predictor, pictures: torch.Tensor, full: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes n pictures' logits, and each winning logit's gradient with respect to the pixels.

    Pictures are (n, 3, S, S) float32 in [0, 1], RGB, on the model's device; results are (n,
    outputs) and (n, 3, S, S) float32, there too. `full` is the number of pictures of a full batch.

    Raises:
      ModelError: the model fails or gives no gradient, or memory does not suffice for a single
        picture.
    """

    def compute(some: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            return call_own(_gradients, predictor, some, full)
        except Exception as error:  # A model's own code can raise anything.
            if isinstance(error, JobError) or is_out_of_memory(error):
                raise
            raise ModelError(
                f"it gives no gradient: {type(error).__name__}: {text_of(error)}"
            ) from error

    logits, gradients = zip(*predictor.in_fitting_batches(compute, pictures), strict=True)
    return torch.cat(logits), torch.cat(gradients)


def _gradients(
    predictor: Predictor, pictures: torch.Tensor, full: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Does the same as `winning_logit_gradients` in one batch; raises out-of-memory errors."""
    leaf = pictures.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = predictor.forward_once(leaf, full or len(leaf))
        if not logits.requires_grad:
            raise ModelError("it gives no gradient: its outputs do not come from torch")
        # Pictures do not influence each other in evaluation mode, so one backward pass of the sum
        # gives the gradient of each.
        score = logits.gather(1, logits.argmax(dim=1)[:, None]).sum()
        (gradients,) = torch.autograd.grad(score, leaf)
    return logits.detach(), gradients.float()
