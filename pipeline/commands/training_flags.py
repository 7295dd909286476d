"""From flags to where and how a network runs while it is trained, for `train` and `matrix`."""

from __future__ import annotations

import argparse

import torch

from pipeline.commands.hints import require_cuda
from pipeline.errors import UsageError
from pipeline.runtime.machine import usable_cores

_MOST_WORKERS = 16


def choose_device(arguments: argparse.Namespace) -> tuple[str, str]:
    """(device, precision), where the flags leave them open.

    Raises:
      UsageError: there is no GPU, where one is asked for or the precision needs one.
    """
    device, has_gpu = arguments.device, torch.cuda.is_available()
    if device == "cuda":
        require_cuda("train")
    if device == "auto":
        device = "cuda" if has_gpu else "cpu"
    precision = arguments.precision
    if precision == "auto":
        if device == "cpu":
            return device, "fp32"
        # Older cards compute bfloat16 as well, but slowly.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return device, "bf16" if has_bf16 else "fp16"
    if precision == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 is for a GPU alone: on a CPU, fp32, tf32 and bf16 do")
    return device, precision


def default_workers(device: str) -> int:
    """How many processes load pictures: on a CPU they take the network's cores."""
    return 1 if device == "cpu" else min(_MOST_WORKERS, usable_cores())
