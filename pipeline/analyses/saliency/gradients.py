"""Gradients of models' outputs with respect to pixels."""

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import JobError, ModelError, text_of
from pipeline.models.predict import Predictor, are_numbers, is_out_of_memory, refuse_broken
from pipeline.runtime.custom_functions import call_own


def winning_logit_gradients(
    predictor: Predictor, pictures: torch.Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Computes n pictures' logits, and each winning logit's gradient with respect to the pixels.

    Args:
      pictures: (n, 3, S, S) float32 in [0, 1], RGB, on the model's device.

    Returns:
      (logits, gradients), (n, outputs) and (n, 3, S, S) float32.

    Raises:
      ModelError: the model fails or gives no gradient, its outputs or gradients are not numbers, or
        memory does not suffice for a single picture.
    """
    results = predictor.in_fitting_batches(lambda some: _fetched(predictor, some), pictures)
    all_logits, all_gradients = zip(*results, strict=True)
    return np.concatenate(all_logits), np.concatenate(all_gradients)


def _fetched(
    predictor: Predictor, pictures: torch.Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Does the same as `winning_logit_gradients`, but never splits the batch.

    An out-of-memory error is raised as it is.
    """
    try:
        logits, gradients = call_own(_gradients, predictor, pictures)
        checks = torch.stack([are_numbers(logits), are_numbers(gradients.abs())])
        on_host = logits.cpu().numpy(), gradients.cpu().numpy()
    except Exception as error:  # A model's own code can raise anything.
        if isinstance(error, JobError) or is_out_of_memory(error):
            raise
        raise ModelError(
            f"it gives no gradient: {type(error).__name__}: {text_of(error)}"
        ) from error
    for valid, what in zip(checks.cpu(), ("outputs", "gradients"), strict=True):
        refuse_broken(valid, what)
    return on_host


def _gradients(predictor: Predictor, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes `winning_logit_gradients` as tensors on the device."""
    leaf = pictures.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = predictor.forward_once(leaf)
        if not logits.requires_grad:
            raise ModelError("it gives no gradient: its outputs do not come from torch")
        # Pictures do not influence each other in evaluation mode, so one backward pass of the sum
        # gives the gradient of each.
        score = logits.gather(1, logits.argmax(dim=1)[:, None]).sum()
        (gradients,) = torch.autograd.grad(score, leaf)
    return logits.detach(), gradients.float()
