"""Inference: runs one model over sets of pictures on a device, in batches of a fixed size.

Decoding uses as many threads as torch uses for computing. With a GPU, they decode batches before
the GPU needs them. On a CPU, decoding takes turns with the forward pass, because the threads of a
forward pass would wait for each other if a decoder took one of their cores. The GPU never waits for
a copy: pictures are copied to it in a separate stream, and the outputs of a batch are fetched while
the next batch is computed.
"""

import collections
import contextlib
import functools
import math
import sys
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from pipeline.errors import JobError, ModelError, text_of
from pipeline.models.identity import PredictConfig, Preprocessing
from pipeline.models.loader import Batch, Loader, P, PixelCache, Pixels
from pipeline.models.source import LoadedModel, unlike_logits
from pipeline.runtime.custom_functions import call_own
from transforms.codec import decode_image, decode_into
from transforms.limits import MAX_IMAGE_SIZE

_DECODED_AHEAD = {"cpu": 0, "cuda": 3}
"""Number of batches that are decoded in advance, for each device."""
IN_FLIGHT = {"cpu": 0, "cuda": 2}
"""Number of batches that are launched before the outputs of an earlier batch are fetched."""

R = TypeVar("R")


def device_of(name: str, block: int) -> torch.device:
    """Returns the device of this machine, `cpu` or `cuda`, that runs a block.

    Raises ModelError if no GPU is available.
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


class Fetched:
    """A tensor on its way to host memory, perhaps not computed yet; its device does other work."""

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


def lagging(launched: Iterable[R], device: torch.device) -> Iterator[R]:
    """Yields what was launched on a device, each after the next ones that may be in flight.

    If the next one cannot be launched, what was launched before is yielded before the error.
    """
    waiting: collections.deque[R] = collections.deque()
    try:
        for one in launched:
            waiting.append(one)
            if len(waiting) > IN_FLIGHT[device.type]:
                yield waiting.popleft()
    except Exception:
        yield from waiting
        raise
    yield from waiting


class NetworkInput:
    """Resizes and normalises pictures for a network, by the mean and std of its preprocessing."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        values = torch.arange(256, dtype=torch.float32).div_(255)
        self._of_values = values.view(1, 256, 1).sub(mean).div_(std).numpy()
        self._mean, self._std = (each.repeat(MAX_IMAGE_SIZE).to(device) for each in (mean, std))
        self._memory = torch.empty(0, dtype=torch.float32)

    def __call__(self, pictures: torch.Tensor, side: int) -> torch.Tensor:
        """Returns the network's input, (n, 3, side, side) float32 in memory format `channels_last`.

        The operation is differentiable. On a CPU in torch's inference mode, the next call may
        overwrite the result.

        Args:
          pictures: (n, S, S, 3) uint8 or (n, 3, S, S) float32 in [0, 1], RGB.
          side: side of the input in pixels. Pictures of another size are resized by a bicubic
            filter (`torch.nn.functional.interpolate` with `antialias`).
        """
        count = len(pictures)
        if pictures.dtype == torch.uint8 and pictures.shape[1] == side:
            if _is_eager_on_cpu(pictures):
                return self._looked_up(pictures)
            # Every index of this is affine. Through an axis of channels, compiled code would
            # compute two remainders for each pixel in the network's first layer.
            rows = pictures.reshape(count * side, 3 * side).float().div_(255)
        else:
            if pictures.dtype == torch.uint8:
                pictures = to_floats(pictures)
            if side != pictures.shape[-1]:
                pictures = functional.interpolate(
                    pictures, (side, side), mode="bicubic", antialias=True, align_corners=False
                ).clamp(0, 1)
            rows = pictures.permute(0, 2, 3, 1).reshape(count * side, 3 * side)
        # Whole rows of pixels at once, because broadcasting over three channels takes three times
        # as long.
        out = self._tensor(rows.shape) if _is_eager_on_cpu(rows) else None
        normalised = torch.sub(rows, self._mean[: 3 * side], out=out).div_(self._std[: 3 * side])
        return normalised.view(count, side, side, 3).permute(0, 3, 1, 2)

    def _looked_up(self, pixels: torch.Tensor) -> torch.Tensor:
        """Does the same for pixels of the right size, in one pass over them."""
        out = self._tensor(pixels.shape)
        rows = (-1, *pixels.shape[2:])
        cv2.LUT(pixels.reshape(rows).numpy(), self._of_values, out.view(rows).numpy())
        return out.permute(0, 3, 1, 2)

    def _tensor(self, shape: Sequence[int]) -> torch.Tensor:
        """Returns an uninitialised float32 tensor on the CPU, in the memory of the last one.

        With a new one for each batch, memory would grow with the number of batches, because it
        rarely fits into the gap that the last one has left in the heap.
        """
        size = math.prod(shape)
        if self._memory.numel() < size:
            self._memory = torch.empty(size, dtype=torch.float32)
        return self._memory[:size].view(*shape)


def to_floats(pixels: torch.Tensor) -> torch.Tensor:
    """Converts (n, S, S, 3) uint8 pixels to (n, 3, S, S) float32 in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div_(255)


def _is_eager_on_cpu(pictures: torch.Tensor) -> bool:
    """Returns whether numpy may read pictures, and the next batch overwrite what it is made of."""
    # Compiled code plans its memory by itself. Asked first, as the mode cannot be compiled.
    is_eager = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    return is_eager and pictures.device.type == "cpu"


def _in_fp32(forward: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Returns the forward pass of a layer whose weights are in fp32, outside of autocast."""

    def forward_in_fp32(features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return forward(features.float())

    return forward_in_fp32


def _compiled(network: Any) -> Callable[..., torch.Tensor]:
    """Compiles a function of its own, whose variants do not count for another model's."""
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    code, names = network.__code__.replace(), network.__globals__
    own = types.FunctionType(code, names, network.__name__, None, network.__closure__)
    compiled: Callable[..., torch.Tensor] = torch.compile(own, dynamic=False)
    return compiled


def _decode_cropped(crop: Callable[[Image.Image], Any], image: bytes, out: Pixels) -> None:
    """Decodes a picture, resized and cropped by a model's own transform, into (S, S, 3) uint8."""
    cropped = np.asarray(crop(Image.fromarray(decode_image(image))), np.uint8)
    out[:] = cropped.transpose(1, 2, 0)


class Predictor:
    """A model on its device.

    Args:
      model: the model; its module is moved to the device, not copied.
      block: number of the block of work; block i runs on GPU i modulo the number of GPUs.

    Raises:
      ModelError: there is no such device, it does not have the precision, or the model cannot be
        compiled.

    Attributes:
      config: the settings, with the device and the batch size resolved.
      module: the model's module, which takes pictures from `prepare`.
    """

    def __init__(
        self,
        model: LoadedModel,
        config: PredictConfig,
        cache: PixelCache | None = None,
        block: int = 0,
    ) -> None:
        self.config = config = config.on_this_machine()
        assert config.batch_size is not None  # `on_this_machine` has set it.
        self.batch_size = config.batch_size
        self.device = device_of(config.device, block)
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._cache = cache or PixelCache(0)
        self._preprocessing = model.preprocessing
        self._num_outputs = model.num_outputs
        self.module = model.module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile and next(self.module.parameters(), None) is None:
            raise ModelError("it is no network of torch; leave --compile out")

        def network(pictures: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.module(self.prepare(pictures))
            return logits

        self._network = _compiled(network) if config.compile else network
        self._undo = contextlib.ExitStack()
        self._input = NetworkInput(model.preprocessing, self.device)
        self._fits = sys.maxsize
        self._crop: Callable[[Image.Image], Any] | None = None
        if config.eval_input == "native":
            from timm.data import create_transform

            side = model.preprocessing.input_size
            self._crop = create_transform(
                input_size=(3, side, side),
                interpolation=model.preprocessing.interpolation,
                crop_pct=model.preprocessing.crop_pct,
                crop_mode=model.preprocessing.crop_mode,
                is_training=False,
                use_prefetcher=True,
            )
        allow_tf32 = config.precision == "tf32"
        if allow_tf32 and (
            self.device.type == "cpu" or torch.cuda.get_device_capability(self.device) < (8, 0)
        ):
            raise ModelError(
                "--precision tf32 needs a GPU with compute capability 8.0; this device computes "
                "fp32, so leave --precision out"
            )
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        torch.backends.cudnn.allow_tf32 = allow_tf32
        if config.precision == "bf16":
            self._use_bf16(model.is_shared, is_encoder=bool(model.features))

    def _use_bf16(self, is_shared: bool, is_encoder: bool) -> None:
        """Computes heads in fp32, and converts other weights now and not in every batch.

        A significand of bf16 has eight bits, so the highest two logits of a head in bf16 are often
        equal.
        """
        # With an output for the background, which some networks have before the classes. An encoder
        # has no head of its own.
        outputs = () if is_encoder else (self._num_outputs, self._num_outputs + 1)
        for layer in self.module.modules():
            if not isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                continue
            if len(layer.weight) in outputs:
                layer.forward = _in_fp32(layer.forward)  # type: ignore[method-assign]
                self._undo.callback(delattr, layer, "forward")
            # Subclasses and hooks may compute with their weights before they use them.
            elif (
                not is_shared
                and type(layer) in (torch.nn.Conv2d, torch.nn.Linear)
                and not layer._forward_pre_hooks
            ):
                layer.to(torch.bfloat16)

    def close(self) -> None:
        """Leaves a module that its maker may hold as it was, but on the device."""
        # The network refers to this object.
        del self._network
        self._undo.close()

    def logits(
        self,
        sets: Iterable[P],
        stored: int,
        reduce: Callable[[Batch[P], torch.Tensor], torch.Tensor] = lambda _, logits: logits,
    ) -> Generator[tuple[Batch[P], NDArray[np.float32]], None, None]:
        """Yields (batch, logits) of sets of pictures in order, with logits (n, outputs) float32.

        The batch's pixels are overwritten once the next batch is requested.

        Args:
          stored: side of the stored pictures, in pixels; ignored if `eval_input` is `native`,
            because the model's own resize takes pictures of any size.
          reduce: makes of a batch's logits, on the device, what is fetched and yielded in their
            place: (n, any number) float32, which are not numbers where the logits are not.

        Raises:
          ModelError: for the reasons of `forward`, or outputs are not numbers.
          Exception: for the reasons of `Loader.batches`.
        """
        loader: Loader[P] = Loader(
            functools.partial(_decode_cropped, self._crop) if self._crop else decode_into,
            self._preprocessing.input_size if self._crop else stored,
            self.batch_size,
            cache=self._cache,
            kind=f"{self._preprocessing} " if self._crop else "",
            threads=torch.get_num_threads(),
            ahead=_DECODED_AHEAD[self.device.type],
            pinned=self.device.type == "cuda",
        )
        with contextlib.closing(loader.batches(sets)) as batches:
            launched = ((batch, self._launch(batch, reduce)) for batch in batches)
            for batch, outputs in lagging(launched, self.device):
                logits = outputs.wait()
                refuse_broken(are_numbers(logits))
                yield batch, logits.numpy()
                loader.hand_back(batch)

    @torch.inference_mode()
    def _launch(
        self, batch: Batch[P], reduce: Callable[[Batch[P], torch.Tensor], torch.Tensor]
    ) -> Fetched:
        def run(some: Pixels) -> torch.Tensor:
            return self.forward_once(self.to_device(some))

        return Fetched(reduce(batch, torch.cat(self.in_fitting_batches(run, batch.pixels))))

    def to_device(self, array: NDArray[Any]) -> torch.Tensor:
        """Copies an array to the device, without waiting for it; on a CPU, memory is shared."""
        host = torch.from_numpy(array)
        if self._copies is None:
            return host
        compute = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            # From memory that is not pinned, the copy would wait for what the device does.
            pinned = host if host.is_pinned() else host.pin_memory()
            copied = pinned.to(self.device, non_blocking=True)
        compute.wait_stream(self._copies)
        # Keeps the allocator from reusing the memory while the compute stream still reads it.
        copied.record_stream(compute)
        return copied

    def in_fitting_batches(
        self, run: Callable[..., R], *inputs: torch.Tensor | NDArray[Any]
    ) -> list[R]:
        """Runs a function on inputs of one length, >= 1, in batches halved until memory suffices.

        The size that suffices is kept for the calls after, so that they do not try again what has
        failed. The function takes the same n elements of each input.

        Raises:
          ModelError: memory does not suffice for a single picture.
          Exception: any other exception of `run`.
        """
        results: list[R] = []
        start = 0
        while start < len(inputs[0]):
            end = min(len(inputs[0]), start + self._fits)
            try:
                results.append(run(*(array[start:end] for array in inputs)))
                start = end
                continue
            except Exception as error:  # onnxruntime's are not RuntimeErrors.
                if not is_out_of_memory(error):
                    raise
                if end - start == 1:
                    raise ModelError("there is not enough memory for a single picture") from error
            # Not in the handler, because there the error's traceback keeps the activations alive.
            self._fits = (end - start + 1) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return results

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Runs a batch through the model, in as many steps as memory requires.

        From pictures of `prepare`, it makes (n, outputs) float32, both on `device`.

        Raises:
          ModelError: the model fails, its output is not (n, outputs), or memory does not suffice
            for a single picture.
        """
        return torch.cat(self.in_fitting_batches(self.forward_once, pictures))

    def forward_once(self, pictures: torch.Tensor, full: int | None = None) -> torch.Tensor:
        """Does the same as `forward`, but never splits the batch, and raises out-of-memory errors.

        A compiled network always gets `full` pictures, by default the batch size, so that one graph
        serves all batches: those that are missing are black, and their outputs are dropped.
        """
        count = len(pictures)
        if self.config.compile:
            missing = min(full or self.batch_size, self._fits) - count
            pictures = functional.pad(pictures, (*[0] * 7, max(0, missing)))
        is_mixed = self.config.precision == "bf16"
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=is_mixed):
                logits = call_own(self._network, pictures)
        except JobError as error:
            raise ModelError(text_of(error)) from error
        except Exception as error:  # A model's own code can raise anything.
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"its forward pass failed: {type(error).__name__}: {text_of(error)}"
            ) from error
        if other := unlike_logits(logits, len(pictures), self._num_outputs):
            raise ModelError(
                f"it returns {other} for {len(pictures)} pictures, "
                f"not {self._num_outputs} real outputs each"
            )
        # A copy, because a model may return a part of its input, whose memory is used again.
        return logits[:count].to(torch.float32, copy=True)

    def prepare(self, pictures: torch.Tensor) -> torch.Tensor:
        """Makes the module's input from (n, S, S, 3) uint8 or (n, 3, S, S) float32 in [0, 1], RGB.

        The operation is differentiable.
        """
        is_resized = self.config.eval_input == "native" or self._preprocessing.fixed_size
        side = self._preprocessing.input_size if is_resized else pictures.shape[2]
        return self._input(pictures, side)


def are_numbers(outputs: torch.Tensor) -> torch.Tensor:
    """Returns which of n pictures' outputs, (n, ...), can be compared: (n,) bool on their device.

    They cannot if one of them is NaN or +infinity, or if all are -infinity. A single -infinity is
    fine, because models mask classes with it.
    """
    # All axes at once, because flattening would copy what lies in another order in memory.
    return outputs.amax(dim=tuple(range(1, outputs.ndim))).isfinite()


def refuse_broken(valid: torch.Tensor | NDArray[np.bool_], what: str = "outputs") -> None:
    """Raises ModelError unless `what` a model gave for each of n pictures is valid.

    (n,) bool of `are_numbers` are in host memory: on a device they would have to be waited for.
    """
    if broken := len(valid) - int(valid.sum()):
        raise ModelError(
            f"its {what} are not numbers but NaN or infinity for {broken} of {len(valid)} pictures "
            "of a batch"
        )
