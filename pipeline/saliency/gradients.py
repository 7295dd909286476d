"""Gradients of models with respect to pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.evaluate.predict import Predictor, is_out_of_memory
from pipeline.evaluate.resident import free_memory
from transforms.hashing import keyed_hash

NOISE = 0.15
"""Standard deviation of SmoothGrad's noise, of pixels in [0, 1] (Smilkov et al. 2017: 0.1 to
0.2 of their range)."""


def answer_gradients(
    predictor: Predictor,
    pictures: torch.Tensor,
    keys: Sequence[str],
    smoothgrad: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What moves a model's answers: gradients of the winning outputs' logits.

    Args:
      predictor: the model.
      pictures: (n, 3, S, S) float32 in [0, 1], RGB, on the model's device.
      keys: (n,) of the pictures; the noise of each depends on its key.
      smoothgrad: over how many noisy copies of a picture its gradient is averaged, 0 for the
        picture itself. The output is always the one that wins without noise.

    Returns:
      (logits (n, outputs), gradients (n, 3, S, S)).

    Raises:
      ModelError: the model gives no gradient, or there is not enough memory.
    """
    try:
        logits, gradients = _gradients(predictor, pictures, None)
        if smoothgrad:
            winners = logits.argmax(dim=1)
            gradients = torch.zeros_like(pictures)
            for copy in range(smoothgrad):
                noisy = pictures + NOISE * _noise(pictures, keys, copy)
                gradients += _gradients(predictor, noisy, winners)[1] / smoothgrad
        return logits.cpu().numpy(), gradients.cpu().numpy()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise ModelError(f"it gives no gradient: {type(error).__name__}: {error}") from error
        if len(pictures) == 1:
            raise ModelError("there is not enough memory for a single picture") from error
    # Outside the handler, whose traceback holds on to the activations.
    free_memory()
    half = len(pictures) // 2
    parts = [
        answer_gradients(predictor, pictures[part], keys[part], smoothgrad)
        for part in (slice(half), slice(half, None))
    ]
    logits_of, gradients_of = zip(*parts, strict=True)
    return np.concatenate(logits_of), np.concatenate(gradients_of)


def _gradients(
    predictor: Predictor, pictures: torch.Tensor, outputs: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, gradients of the given outputs' logits, the winning ones' if None)."""
    leaf = pictures.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = predictor.forward_once(leaf)
        if not logits.requires_grad:
            raise ModelError("it gives no gradient: its outputs do not come from torch")
        wanted = logits.argmax(dim=1) if outputs is None else outputs
        # Pictures do not mix in evaluation mode: one backward pass serves all.
        score = logits.gather(1, wanted[:, None]).sum()
        (gradients,) = torch.autograd.grad(score, leaf)
    return logits.detach(), gradients.float()


def _noise(pictures: torch.Tensor, keys: Sequence[str], copy: int) -> torch.Tensor:
    """Standard normal, (n, 3, S, S)."""
    noise = [
        np.random.Generator(
            np.random.PCG64(keyed_hash(0, "smoothgrad", f"{key}/{copy}"))
        ).standard_normal(pictures.shape[1:], np.float32)
        for key in keys
    ]
    return torch.from_numpy(np.stack(noise)).to(pictures.device)
