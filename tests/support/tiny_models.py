"""Classifiers for tests in which predictions do not matter."""

import numpy as np
import torch


def first() -> torch.nn.Module:
    """Makes a classifier of ImageNet's classes from 64 mean colours."""
    return _linear(1)


def second() -> torch.nn.Module:
    return _linear(2)


def third() -> torch.nn.Module:
    return _linear(3)


def _linear(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(192, 1000)
    return torch.nn.Sequential(*layers)


class Fixed(torch.nn.Module):
    """A network that returns the first rows of a table, whatever the pictures are."""

    def __init__(self, outputs: np.ndarray) -> None:
        super().__init__()
        self.outputs = torch.from_numpy(outputs)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.outputs[: len(pictures)]
