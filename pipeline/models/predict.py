"""Predict: one model over the pictures of parts, in fixed batches.

Pictures are decoded by as many threads as torch uses: ahead of a GPU; in turn with a CPU's
forward pass, whose threads would wait for each other where a decoder takes a core away. On a GPU
nothing waits for a batch: copies to it have a stream of their own, and outputs are fetched when
the batch behind is at work.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Generator, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch.nn import functional

from pipeline.errors import JobError, ModelError
from pipeline.models.loaded import LoadedModel
from pipeline.models.loader import Batch, Loader, P
from pipeline.models.pixel_cache import PixelCache
from pipeline.models.predict_config import PredictConfig
from transforms.codec import decode_image, decode_into

_DECODED_AHEAD = {"cpu": 0, "cuda": 3}
_AT_WORK = {"cpu": 0, "cuda": 1}
"""Batches on the device beyond the one whose outputs are fetched."""
_NO_CACHE = PixelCache(0)

Pixels = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, eq=False)
class _Outputs:
    """What a batch gives: (n, outputs) on this machine, when `done` has happened."""

    logits: torch.Tensor
    done: torch.cuda.Event | None


class Predictor:
    """A model on its device.

    Args:
      model: taken over; its module moves to the device.
      config: how to run it.
      cache: of decoded pictures.
      group: number of the group of shards; GPUs of one machine take groups in turn.

    Attributes:
      config: the same, with the device and the batch of this machine.
      device: where it is.
      module: takes what `prepare` gives.
    """

    def __init__(
        self,
        model: LoadedModel,
        config: PredictConfig,
        cache: PixelCache = _NO_CACHE,
        group: int = 0,
    ) -> None:
        self.config = config = config.on_this_machine()
        self.device = device_of(config.device, group)
        is_gpu = self.device.type == "cuda"
        self._copies = torch.cuda.Stream(self.device) if is_gpu else None  # type: ignore[no-untyped-call]
        self._cache = cache
        self._preprocessing = model.preprocessing
        self._num_outputs = model.num_outputs
        self.module = model.module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(model.preprocessing.mean, device=self.device).view(shape)
        self._std = torch.tensor(model.preprocessing.std, device=self.device).view(shape)
        self._crop = (
            create_transform(
                input_size=(3, model.preprocessing.input_size, model.preprocessing.input_size),
                interpolation=model.preprocessing.interpolation,
                crop_pct=model.preprocessing.crop_pct,
                crop_mode=model.preprocessing.crop_mode,
                is_training=False,
                use_prefetcher=True,
            )
            if config.eval_input == "native"
            else None
        )
        allow_tf32 = config.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        torch.backends.cudnn.allow_tf32 = allow_tf32

    @property
    def batch_size(self) -> int:
        """Pictures in a batch."""
        size = self.config.batch_size
        assert size is not None  # Of `on_this_machine`.
        return size

    def input_size(self, stored: int) -> int:
        """Side in pixels of what the model sees, given the stored side."""
        if self.config.eval_input == "native" or self._preprocessing.fixed_size:
            return self._preprocessing.input_size
        return stored

    def logits(
        self, parts: Iterable[P], stored: int
    ) -> Generator[tuple[Batch[P], NDArray[np.float32]], None, None]:
        """Scores the pictures of parts.

        Args:
          parts: in order.
          stored: side in pixels of all stored pictures; of others, that `native` crops, any.

        Yields:
          (batch, logits) in order, logits (n, outputs) float32; the batch's pixels are those of
          other pictures when the next one is taken.

        Raises:
          BrokenPictureError: a picture cannot be decoded.
          ModelError: as `forward`.
          Exception: whatever reading a part raises.
        """
        loader: Loader[P] = Loader(
            self._decode,
            self._preprocessing.input_size if self._crop else stored,
            self.batch_size,
            cache=self._cache,
            kind=f"{self._preprocessing} " if self._crop else "",
            threads=torch.get_num_threads(),
            ahead=_DECODED_AHEAD[self.device.type],
            pinned=self.device.type == "cuda",
        )
        at_work: collections.deque[tuple[Batch[P], _Outputs]] = collections.deque()
        with contextlib.closing(loader.batches(parts)) as batches:
            for batch in batches:
                at_work.append((batch, self._begin(batch.pixels)))
                if len(at_work) > _AT_WORK[self.device.type]:
                    yield from self._end(loader, *at_work.popleft())
            while at_work:
                yield from self._end(loader, *at_work.popleft())

    def _decode(self, image: bytes, out: Pixels) -> None:
        if self._crop is None:
            decode_into(image, out)
        else:
            cropped = np.asarray(self._crop(Image.fromarray(decode_image(image))), np.uint8)
            out[:] = cropped.transpose(1, 2, 0)

    @torch.inference_mode()
    def _begin(self, pixels: Pixels) -> _Outputs:
        logits = self.forward(self.to_device(pixels))
        if self.device.type == "cpu":
            return _Outputs(logits, None)
        fetched = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        fetched.copy_(logits, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))
        return _Outputs(fetched, done)

    def _end(
        self, loader: Loader[P], batch: Batch[P], outputs: _Outputs
    ) -> Generator[tuple[Batch[P], NDArray[np.float32]], None, None]:
        if outputs.done is not None:
            outputs.done.synchronize()
        yield batch, outputs.logits.numpy()
        loader.hand_back(batch)

    def to_device(self, pixels: Pixels) -> torch.Tensor:
        """Pictures as `forward` takes them, of (n, S, S, 3) uint8."""
        if self._copies is None:
            copied = torch.from_numpy(pixels)
        else:
            working = torch.cuda.current_stream(self.device)
            with torch.cuda.stream(self._copies):
                copied = torch.from_numpy(pixels).to(self.device, non_blocking=True)
            working.wait_stream(self._copies)
            # Its memory is not free before those that work on it have ended.
            copied.record_stream(working)
        return copied.permute(0, 3, 1, 2).float() / 255

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Scores a batch; where memory does not suffice, in halves.

        Args:
          pictures: (n, 3, S, S) float32 in [0, 1], RGB, on `device`.

        Returns:
          (n, outputs) float32 logits, on `device`.

        Raises:
          ModelError: it fails, gives another shape, or has no memory for a single picture.
        """
        try:
            return self.forward_once(pictures)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(pictures) == 1:
                raise ModelError("there is not enough memory for a single picture") from error
        # Outside the handler, whose traceback holds on to the activations.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(pictures) // 2
        return torch.cat([self.forward(pictures[:half]), self.forward(pictures[half:])])

    def forward_once(self, pictures: torch.Tensor) -> torch.Tensor:
        """As `forward`, but always in one piece. Raises, beside its ModelError, whatever says that
        memory does not suffice."""
        mixed = (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.config.precision == "bf16"
            else contextlib.nullcontext()
        )
        try:
            with mixed:
                logits: torch.Tensor = self.module(self.prepare(pictures))
        except JobError as error:
            raise ModelError(str(error)) from error
        except Exception as error:  # Whatever a model's own code raises.
            if is_out_of_memory(error):
                raise
            raise ModelError(f"its forward pass failed: {type(error).__name__}: {error}") from error
        if logits.shape != (len(pictures), self._num_outputs):
            raise ModelError(
                f"it gives {tuple(logits.shape)} for {len(pictures)} pictures, "
                f"not {self._num_outputs} outputs each"
            )
        return logits.float()

    def prepare(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the module takes: pictures (n, 3, S, S) float32 in [0, 1] at the model's size,
        normalised. Differentiable."""
        side = self.input_size(pictures.shape[-1])
        if side != pictures.shape[-1]:
            pictures = functional.interpolate(
                pictures, (side, side), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
        normalised = (pictures - self._mean) / self._std
        return normalised.contiguous(memory_format=torch.channels_last)


def device_of(name: str, group: int) -> torch.device:
    """The device of this machine that a group's models run on.

    Args:
      name: `cpu` or `cuda`.
      group: number of the group.

    Raises:
      ModelError: there is no GPU.
    """
    if name != "cuda":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise ModelError(
            "--device cuda: this machine has no CUDA device that torch can use"
            f" ({_why_no_gpu()}; PyTorch {torch.__version__})"
        )
    return torch.device("cuda", group % torch.cuda.device_count())


def _why_no_gpu() -> str:
    """What PyTorch says: that it is built for CPUs, or that a driver is missing or too old."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        return str(error).partition(". ")[0].strip()
    return "it finds none"


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had no memory for a batch."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or (
        "DefaultCPUAllocator" in str(error)
    )
