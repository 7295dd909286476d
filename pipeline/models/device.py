"""Devices that networks run on: which one a block takes, what it fetches, when its memory ends."""

import torch

from pipeline.errors import ModelError, text_of


class Fetched:
    """A tensor on its way to host memory. Its device does other work meanwhile.

    Args:
      tensor: the tensor, whose computation may have only been launched.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host, self._done = tensor, None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> torch.Tensor:
        """Waits for the tensor, and not for what was launched after it; returns it."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


def device_of(name: str, block: int) -> torch.device:
    """Returns the device of this machine that runs a block.

    Args:
      name: `cpu` or `cuda`.

    Raises:
      ModelError: no GPU is available.
    """
    if name != "cuda":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise ModelError(
            "--device cuda: this machine has no CUDA device that torch can use"
            f" ({_why_no_gpu()}; PyTorch {torch.__version__})"
        )
    return torch.device("cuda", block % torch.cuda.device_count())


def _why_no_gpu() -> str:
    """Returns PyTorch's reason for using no GPU, such as a CPU-only build or a missing driver."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        return str(error).partition(". ")[0].strip()
    return "it finds none"


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether the device or the machine ran out of memory."""
    # CUDA's libraries for matrices and convolutions allocate memory by themselves.
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or any(
        words in text_of(error)
        for words in ("DefaultCPUAllocator", "_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
    )
