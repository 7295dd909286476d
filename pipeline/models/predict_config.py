"""Settings of inference, on which scores depend besides the model and the pixels.

Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

CPU_BATCH = 32
GPU_BATCH = 256


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Settings of inference. Each field has the name of its flag.

    Attributes:
      device: `cpu`, `cuda`, or `auto`: CUDA if the machine that runs the model has it.
      precision: `fp32` (TF32 off), `tf32` or `bf16` (autocast).
      batch_size: number of pictures in a batch, None for the device's default.
      eval_input: `stored` feeds the stored pixels unchanged; `native` applies the model's own
        resize and crop to them.
    """

    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    batch_size: int | None = None
    eval_input: Literal["stored", "native"] = "stored"

    @property
    def identity(self) -> dict[str, str]:
        """Settings that are part of a prediction's fingerprint. The device and the batch size
        change only the last bits of a score, so they are left out, and predictions are reused
        across devices."""
        return {"precision": self.precision, "eval_input": self.eval_input}

    def on_this_machine(self) -> PredictConfig:
        """Resolves `auto` and the default batch size on this machine."""
        device = self.device
        if device == "auto":
            import torch  # Imported only where models run.

            device = "cuda" if torch.cuda.is_available() else "cpu"
        batch = self.batch_size or (GPU_BATCH if device == "cuda" else CPU_BATCH)
        return dataclasses.replace(self, device=device, batch_size=batch)
