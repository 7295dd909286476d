"""How models are run: what scores depend on beside the model and the pixels. It needs no torch."""

from __future__ import annotations

import dataclasses

CPU_BATCH = 32
GPU_BATCH = 256


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """How a model is run. Field names are the flags' names.

    Attributes:
      device: `cpu`, `cuda`, or `auto`: what the machine has that runs the model.
      precision: `fp32` (TF32 off), `tf32` or `bf16` (autocast).
      batch_size: pictures in a batch, None for as many as suit the device.
      eval_input: `stored` feeds the stored pixels as they are; `native` applies the
        model's own resize and crop to them.
    """

    device: str = "auto"
    precision: str = "fp32"
    batch_size: int | None = None
    eval_input: str = "stored"

    @property
    def asked_for(self) -> dict[str, str]:
        """What predictions are told apart by. Devices and batches differ in the last bits of a
        score, and what one of them has made another need not make again."""
        return {"precision": self.precision, "eval_input": self.eval_input}

    def on_this_machine(self) -> PredictConfig:
        """The same with a device and a batch."""
        device = self.device
        if device == "auto":
            import torch  # Only who runs models waits for it.

            device = "cuda" if torch.cuda.is_available() else "cpu"
        batch = self.batch_size or (GPU_BATCH if device == "cuda" else CPU_BATCH)
        return dataclasses.replace(self, device=device, batch_size=batch)
