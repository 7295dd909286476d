"""Chooses device, precision and number of workers for training (`train`, `matrix`) from flags, and
refuses flags that a probe would ignore."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence

import torch

from pipeline.commands.flags import flags_of
from pipeline.commands.hints import require_cuda
from pipeline.errors import UsageError
from pipeline.runtime.machine import usable_cores
from pipeline.storage.store import Store

_MAX_WORKERS = 16


def choose_device(arguments: argparse.Namespace) -> tuple[str, str]:
    """Returns (device, precision); `auto` becomes the best choice for this machine.

    Raises:
      UsageError: the flags ask for a GPU that is not there, or for a precision that the device
        lacks.
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
        # Older GPUs emulate bfloat16, which is slow.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return device, "bf16" if has_bf16 else "fp16"
    if precision == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a GPU; on a CPU, choose fp32, tf32 or bf16")
    return device, precision


def refuse_network_flags(arguments: argparse.Namespace, names: Collection[str]) -> None:
    """Refuses flags of `train --probe` or `matrix --probe` that a probe would ignore.

    Args:
      arguments: the parsed arguments.
      names: names of the flags that only the training of whole networks uses.

    Raises:
      UsageError: such a flag has another value than its default.
    """
    for flag in flags_of(arguments.command):
        if flag.dest in names and getattr(arguments, flag.dest) != flag.default:
            raise UsageError(
                f"{flag.name} is for training whole networks; leave out {flag.name} or --probe"
            )


def refuse_foreign(store: Store, names: Sequence[str], is_ours: Callable[[], bool]) -> None:
    """Refuses a folder for trained models that holds a foreign file under a name that is needed.

    Args:
      store: the folder.
      names: names of the files that will be written.
      is_ours: returns whether the existing ones were written by an earlier training.

    Raises:
      UsageError: they were not, or the folder is a file.
    """
    if store.exists(""):
        raise UsageError(f"--output {store.root} is not a folder")
    existing = [name for name in names if store.exists(name)]
    if existing and not is_ours():
        raise UsageError(
            f"--output {store.root} holds {existing[0]}, which was not trained here; choose "
            "another folder"
        )


def default_workers(device: str) -> int:
    """Returns how many processes load pictures. On a CPU it is one, because these processes take
    cores from the network."""
    return 1 if device == "cpu" else min(_MAX_WORKERS, usable_cores())
