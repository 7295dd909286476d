"""Of what saliency is measured, and of which images it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError
from pipeline.evaluate.plan import Evaluation
from transforms.attack_grid import sample_evenly
from transforms.variants import is_picture

DEFAULT_MAPS = 9


@dataclasses.dataclass(frozen=True)
class SaliencyPlan:
    """What to explain, and how.

    Attributes:
      evaluation: models, split, and how they are run.
      variant: whose pictures.
      images: keys of the images to show, None to choose `maps` of them.
      maps: how many to show, spread evenly over the classes.
      smoothgrad: over how many noisy copies gradients are averaged, 0 for none.
    """

    evaluation: Evaluation
    variant: str = "original"
    images: tuple[str, ...] | None = None
    maps: int = DEFAULT_MAPS
    smoothgrad: int = 0

    @property
    def method(self) -> str:
        """In words: absolute values of that gradient, the largest of a pixel's channels."""
        copies = f", mean of {self.smoothgrad} noisy copies" if self.smoothgrad else ""
        return f"gradient of the winning logit{copies}"


def check_variants(variants: Iterable[str], variant: str) -> None:
    """Raises UsageError if a dataset of these variants does not have what is needed."""
    there = set(variants)
    pictures = [name for name in there if is_picture(name)]
    if variant not in pictures:
        raise UsageError(
            f"saliency of {variant}: the dataset has {', '.join(sorted(pictures)) or 'none'}"
        )
    if "fg_mask" not in there:
        raise UsageError(
            "saliency inside the mask needs the variant fg_mask, and the dataset has none; make "
            "it with it: see --variants"
        )


def shown_images(dataset: Dataset, plan: SaliencyPlan) -> dict[str, int]:
    """Key to output shard of the images to show, by class or in the order given.

    Raises:
      UsageError: there are no images, or none of a given key.
    """
    split = plan.evaluation.split
    rows = plan.evaluation.rows(dataset)
    if not rows:
        raise UsageError(f"the dataset has no images in {split}: there is nothing to explain")
    keys, labels = zip(*((row["key"], row["label"]) for row in rows), strict=True)
    shard_of = {key: dataset.shard_of(split, key) for key in keys}
    if plan.images is None:
        chosen = sample_evenly(
            keys, np.asarray(labels, np.int64), plan.maps, seed=0, purpose="saliency"
        )
        by_class = sorted(
            (label, key)
            for key, label, is_shown in zip(keys, labels, chosen, strict=True)
            if is_shown
        )
        return {key: shard_of[key] for _, key in by_class}
    for key in plan.images:
        if key not in shard_of:
            raise UsageError(
                f"--images {key}: the dataset has no such image in {split}; its keys look like "
                f"{keys[0]}"
            )
    return {key: shard_of[key] for key in plan.images}
