"""What a network takes: resized and normalised pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from pipeline.models.preprocessing import Preprocessing


class ReusedMemory:
    """Memory on the CPU for a tensor of each batch.

    Without it, memory would grow with the number of batches, because a new tensor rarely fits into
    the gap that the last one has left in the heap.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def tensor(self, shape: Sequence[int]) -> torch.Tensor:
        """Returns an uninitialised float32 tensor, whose memory the next call returns again."""
        size = math.prod(shape)
        if self._memory.numel() < size:
            self._memory = torch.empty(size)
        return self._memory[:size].view(*shape)


class NetworkInput:
    """Resizes and normalises pictures for a network.

    Args:
      preprocessing: preprocessing of the network, of which the mean and the standard deviation
        count.
      device: device of the pictures.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self._mean = torch.tensor(preprocessing.mean, device=device)
        self._std = torch.tensor(preprocessing.std, device=device)
        self._normalised = ReusedMemory()

    def __call__(self, pictures: torch.Tensor, side: int) -> torch.Tensor:
        """Returns the network's input. The operation is differentiable.

        On a CPU in torch's inference mode, the next call overwrites the result.

        Args:
          pictures: (n, 3, S, S) float32 in [0, 1], RGB.
          side: side of the network's input in pixels. Pictures of another size are resized by a
            bicubic filter (`torch.nn.functional.interpolate` with `antialias`).

        Returns:
          (n, 3, side, side) float32 in torch's memory format `channels_last`.
        """
        if side != pictures.shape[-1]:
            pictures = functional.interpolate(
                pictures, (side, side), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
        # Whole rows of pixels at once, because broadcasting over three channels takes three times
        # as long.
        count = len(pictures)
        rows = pictures.permute(0, 2, 3, 1).reshape(count * side, 3 * side)
        is_reused = rows.device.type == "cpu" and torch.is_inference_mode_enabled()
        out = self._normalised.tensor(rows.shape) if is_reused else None
        normalised = torch.sub(rows, self._mean.repeat(side), out=out).div_(self._std.repeat(side))
        return normalised.view(count, side, side, 3).permute(0, 3, 1, 2)
