"""Runs a model on the pairs of a grid; images are decoded once and lie on the device as arrays.

All backgrounds stay on the device as 8-bit pixels: 610 MB for 4,050 backgrounds of 224 x 224
pixels. Foregrounds are streamed a chunk at a time, so memory does not grow with their number. The
device computes the composites of foregrounds and backgrounds, a batch at a time.

In shapes, F is the number of foregrounds of a chunk, B the number of backgrounds, and S the side of
the dataset's pictures in pixels.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.analyses.attack.results import AttackGrid, GridAxis
from pipeline.dataset.folder import Dataset
from pipeline.dataset.sinks import Sample
from pipeline.errors import BrokenPictureError
from pipeline.evaluate.on_device import RulesOnDevice
from pipeline.models.predict import Fetched, Predictor, are_numbers, refuse_broken
from pipeline.storage.interface import read_ahead
from transforms.adversarial import Grid, Labels, try_until_turned
from transforms.codec import UndecodableError, decode_image, decode_mask
from transforms.scoring import LABEL_RULES
from transforms.variants import MASK, ONLY_BG_T, ORIGINAL, VariantName

_BROKEN = -3
"""Stands for a label on the device where a model's outputs are not numbers. Neither a label nor
`UNTRIED` has this value."""

T = TypeVar("T")


def load_backgrounds(
    dataset: Dataset, split: str, backgrounds: GridAxis, device: torch.device
) -> torch.Tensor:
    """Decodes the backgrounds, pictures of `only_bg_t`: (B, S, S, 3) uint8 RGB on the device.

    Raises:
      JobError: a file is broken, or a stored picture cannot be decoded.
    """
    side = dataset.manifest.config.segment.image_size
    pixels = np.empty((len(backgrounds), side, side, 3), np.uint8)
    samples = axis_samples(dataset, split, ONLY_BG_T, backgrounds)
    for position, picture in enumerate(decoded(samples, decode_image)):
        pixels[position] = picture
    return torch.from_numpy(pixels).to(device)


@dataclasses.dataclass(frozen=True, eq=False)
class Cutouts:
    """The foregrounds of a chunk on the device, ready to be composited with any background.

    Attributes:
      pixels: (F, S, S, 3) uint8 RGB, the image where the foreground shows, else 0.
      holes: (F, S, S, 3) uint8, 255 where the background shows, else 0.
    """

    pixels: torch.Tensor
    holes: torch.Tensor

    @classmethod
    def from_arrays(
        cls, originals: NDArray[np.uint8], masks: NDArray[np.bool_], device: torch.device
    ) -> Self:
        """Cuts foregrounds out of (F, S, S, 3) uint8 RGB, where (F, S, S) bool masks are True."""
        holes = np.repeat(np.where(masks, 0, 255).astype(np.uint8)[..., np.newaxis], 3, axis=3)
        pixels = originals & ~holes
        return cls(torch.from_numpy(pixels).to(device), torch.from_numpy(holes).to(device))


def put_on(
    backgrounds: torch.Tensor,
    holes: torch.Tensor,
    pixels: torch.Tensor,
    foreground: torch.Tensor,
    background: torch.Tensor,
) -> torch.Tensor:
    """Composites n pairs, (n,) int64 positions each, of foregrounds and backgrounds.

    Returns (n, S, S, 3) uint8 RGB, the same pixels as `transforms.renderings.composite`.
    """
    # `holes` is 0 or 255, so bitwise operations select whole pixels.
    composites = backgrounds.index_select(0, background)
    composites &= holes.index_select(0, foreground)
    composites |= pixels.index_select(0, foreground)
    return composites


def stream_cutouts(
    dataset: Dataset,
    split: str,
    grid: AttackGrid,
    chunks: Sequence[int],
    device: torch.device,
) -> Generator[Cutouts, None, None]:
    """Decodes the foregrounds of chunks, in rising order, one chunk at a time.

    Raises JobError or OSError, for the reasons of `load_backgrounds`.
    """
    foregrounds = grid.foregrounds.take([at for chunk in chunks for at in grid.positions(chunk)])
    with (
        contextlib.closing(axis_samples(dataset, split, ORIGINAL, foregrounds)) as originals,
        contextlib.closing(axis_samples(dataset, split, MASK, foregrounds)) as mask_samples,
    ):
        for chunk in chunks:
            count = len(grid.positions(chunk))
            images = list(decoded(itertools.islice(originals, count), decode_image))
            masks = list(decoded(itertools.islice(mask_samples, count), decode_mask))
            yield Cutouts.from_arrays(np.stack(images), np.stack(masks), device)


def axis_samples(
    dataset: Dataset, split: str, variant: VariantName, axis: GridAxis
) -> Generator[Sample, None, None]:
    """Yields a variant's samples of the images on an axis, in its order, which is the dataset's."""
    for shard in sorted(set(axis.shards)):
        keys = [key for key, number in zip(axis.keys, axis.shards, strict=True) if number == shard]
        with contextlib.closing(dataset.chosen_samples(split, shard, variant, keys)) as samples:
            yield from samples


def decoded(samples: Iterator[Sample], decode: Callable[[bytes], T]) -> Iterator[T]:
    """Decodes samples in threads, and yields the results in order."""

    def decode_sample(sample: Sample) -> T:
        try:
            return decode(sample.image)
        except UndecodableError as error:
            raise BrokenPictureError(sample.key, error) from error

    decoded = read_ahead(decode_sample, samples, torch.get_num_threads())
    return (result for _, result in decoded)


class GridModel:
    """A model that predicts composites under every label rule.

    Args:
      output_labels: (outputs,) int64, superclass of each output, -1 for none.
      backgrounds: (B, S, S, 3) uint8 on the device, RGB.
    """

    def __init__(
        self, predictor: Predictor, output_labels: Labels, backgrounds: torch.Tensor
    ) -> None:
        self.predictor = predictor
        self._backgrounds = backgrounds
        self._rules = RulesOnDevice(predictor, output_labels)

    @torch.inference_mode()
    def predict(
        self, cutouts: Cutouts, foreground: torch.Tensor, background: torch.Tensor
    ) -> torch.Tensor:
        """Predicts n pairs, given by (n,) int64 positions, under each rule of `LABEL_RULES`.

        Returns (rules, n) int16, for `_checked`: labels, -1 outside the taxonomy. All is on the
        device. The functions in `LABEL_RULES` would give the same labels. Among equal outputs, the
        first wins.
        """

        def run(*pairs: torch.Tensor) -> torch.Tensor:
            pictures = put_on(self._backgrounds, cutouts.holes, cutouts.pixels, *pairs)
            return self.predictor.forward_once(pictures)

        logits = torch.cat(self.predictor.in_fitting_batches(run, foreground, background))
        labels = self._rules.labels(logits).to(torch.int16)
        return labels.masked_fill(~are_numbers(logits), _BROKEN)


def _checked(predictions: Fetched) -> Grid:
    """Waits for predictions. Raises ModelError if outputs were not numbers."""
    grid: Grid = predictions.wait().numpy()
    refuse_broken(grid[0] != _BROKEN)
    return grid


def try_all(
    model: GridModel,
    cutouts: Cutouts,
    size: tuple[int, int],
    batch_size: int,
    note: Callable[[int], None],
) -> Callable[[], Grid]:
    """Launches the prediction of all pairs, (F, B), of a chunk, without waiting for the device.

    Returns:
      A function that waits for the predicted labels, and not for what was launched later: (rules,
      F, B) int16, -1 outside the taxonomy. It raises ModelError if outputs are not numbers.

    Raises:
      ModelError: the model fails.
    """
    pairs = torch.arange(size[0] * size[1], device=cutouts.pixels.device)
    parts = []
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        parts.append(model.predict(cutouts, batch // size[1], batch % size[1]))
        note(len(batch))
    predictions = Fetched(torch.cat(parts, dim=1))
    return lambda: _checked(predictions).reshape(-1, *size)


def stop_early(
    model: GridModel,
    cutouts: Cutouts,
    labels: Labels,
    order: Labels,
    batch_size: int,
    note: Callable[[int], None],
) -> Grid:
    """Tries backgrounds on each foreground of a chunk until one turns it under every label rule.

    A foreground, of (F,) int64 labels, is turned when its prediction is wrong. `order`, (B,) int64,
    are positions of the backgrounds in the order to try them.

    Returns:
      (rules, F, B) int16, the predicted labels, -1 outside the taxonomy; `UNTRIED` for pairs that
      were skipped.

    Raises:
      ModelError: the model fails, or its outputs are not numbers.
    """

    def predict(*pairs: Labels) -> Grid:
        on_device = map(model.predictor.to_device, pairs)
        note(len(pairs[0]))
        return _checked(Fetched(model.predict(cutouts, *on_device)))

    return try_until_turned(labels, order, predict, rules=len(LABEL_RULES), batch_size=batch_size)
