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

METHOD = "gradient of the winning logit"
"""In words: absolute values of that gradient, the largest of a pixel's channels."""

ACTIVATIONS = 4
"""Batches of the evaluation are larger by this factor."""


@dataclasses.dataclass(frozen=True)
class SaliencyPlan:
    """What to explain, and how.

    Attributes:
      evaluation: models, split, and how they are run.
      variant: whose pictures.
      maps: how many images to show, spread evenly over the classes.
    """

    evaluation: Evaluation
    variant: str = "original"
    maps: int = 9


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
    """Key to output shard of the images to show, by class.

    Raises:
      UsageError: there are no images.
    """
    split = plan.evaluation.split
    rows = plan.evaluation.rows(dataset)
    if not rows:
        raise UsageError(f"the dataset has no images in {split}: there is nothing to explain")
    keys, labels = zip(*((row["key"], row["label"]) for row in rows), strict=True)
    chosen = sample_evenly(
        keys, np.asarray(labels, np.int64), plan.maps, seed=0, purpose="saliency"
    )
    by_class = sorted(
        (label, key) for key, label, is_shown in zip(keys, labels, chosen, strict=True) if is_shown
    )
    return {key: dataset.shard_of(split, key) for _, key in by_class}
