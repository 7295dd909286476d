"""Predict: one model over the samples of a shard, in fixed batches.

Pictures are decoded by as many threads as torch uses: ahead of a GPU; in turn with a CPU's
forward pass, whose threads would wait for each other where a decoder takes a core away.
Batches are cut within the shard, so scores do not depend on how a runner bundles shards.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch.nn import functional

from pipeline.dataset.sinks import Sample
from pipeline.errors import BrokenPictureError, JobError, ModelError
from pipeline.models.loaded import LoadedModel
from pipeline.models.predict_config import PredictConfig
from transforms.codec import UndecodableError, decode_image

_BATCHES_AHEAD = {"cpu": 0, "cuda": 3}

T = TypeVar("T")


class Predictor:
    """A model on its device.

    Args:
      model: taken over; its module moves to the device.
      config: how to run it.

    Attributes:
      config: the same, with the device and the batch of this machine.
      device: where it is.
      module: takes what `prepare` gives.
    """

    def __init__(self, model: LoadedModel, config: PredictConfig) -> None:
        self.config = config = config.on_this_machine()
        self.device = torch.device(config.device)
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
        self, samples: Iterable[Sample]
    ) -> Generator[tuple[list[Sample], NDArray[np.float32]], None, None]:
        """Scores samples.

        Yields:
          (samples, logits) of each batch in order, logits (n, outputs) float32.

        Raises:
          BrokenPictureError: a picture cannot be decoded.
        """
        ahead = _BATCHES_AHEAD[self.device.type]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            batches = _batches(samples, self.batch_size)
            for batch, pictures in _ahead(pool, batches, self._picture, ahead):
                yield batch, self._scores(np.stack(pictures))

    def _picture(self, sample: Sample) -> NDArray[np.uint8]:
        try:
            pixels = decode_image(sample.image)
        except UndecodableError as error:
            raise BrokenPictureError(sample.key, error) from error
        if self._crop is None:
            return pixels
        cropped = np.asarray(self._crop(Image.fromarray(pixels)), np.uint8)
        return cropped.transpose(1, 2, 0)

    @torch.inference_mode()
    def _scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self.forward(self.to_device(pixels)).cpu())

    def to_device(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Pictures as `forward` takes them, of (n, S, S, 3) uint8."""
        return torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() / 255

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


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had no memory for a batch."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or (
        "DefaultCPUAllocator" in str(error)
    )


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _ahead(
    pool: ThreadPoolExecutor,
    batches: Iterable[list[Sample]],
    work: Callable[[Sample], T],
    ahead: int,
) -> Iterator[tuple[list[Sample], list[T]]]:
    """Works on `ahead` batches beyond the reader's, in order."""
    waiting: collections.deque[tuple[list[Sample], list[Future[T]]]] = collections.deque()
    for batch in batches:
        waiting.append((batch, [pool.submit(work, sample) for sample in batch]))
        if len(waiting) > ahead:
            first, futures = waiting.popleft()
            yield first, [future.result() for future in futures]
    for first, futures in waiting:
        yield first, [future.result() for future in futures]
