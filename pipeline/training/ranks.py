"""The processes that train together: one, or those that `torchrun` starts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Which process this is.

    Attributes:
      rank: its number; 0 writes and speaks.
      count: of the processes.
      local: its number on this machine.
      local_count: of the processes on this machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1

    @classmethod
    def of_environment(cls) -> Ranks:
        """What `torchrun` has said, or one process alone."""
        try:
            values = [
                int(os.environ.get(name, default))
                for name, default in (
                    *(("RANK", 0), ("WORLD_SIZE", 1)),
                    *(("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)),
                )
            ]
        except ValueError as error:
            raise UsageError(
                f"RANK and WORLD_SIZE in the environment are torchrun's: {error}"
            ) from error
        return cls(*values)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and says what happens."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """The device of this process. Raises UsageError if the machine has too few."""
        if kind == "cpu":
            return torch.device("cpu")
        if self.local >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started {self.local_count} processes for "
                f"{torch.cuda.device_count()} GPUs: --nproc_per_node must not be larger"
            )
        return torch.device("cuda", self.local)

    @contextlib.contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connects the processes while the block runs."""
        if self.count == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def wrapped(self, module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The module, with gradients that are the mean of all processes'."""
        if self.count == 1:
            return module
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' values, in each of them."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Gives all processes the buffers of the first one, such as running means. Each has had
        its own since its last step."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()
