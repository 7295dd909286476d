"""Detects train-test leakage: checkpoints that were trained on images that they are tested on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout, selected_rows
from pipeline.errors import ModelError, UsageError
from pipeline.models.checkpoint import TrainedOn, metadata_of_entry


@dataclasses.dataclass(frozen=True)
class EvalSubset:
    """The images that a model is tested on.

    Attributes:
      dataset: the dataset.
      split: split of the dataset.
      holdout: share of the split that is held out and tested on; 0 tests on all images.
      allow_overlap: whether to test a model even if it was trained on these images.
    """

    dataset: Dataset
    split: str
    holdout: float
    allow_overlap: bool

    def overlap(self, trained: TrainedOn) -> int:
        """Counts the tested images that a checkpoint was trained on."""
        rows = selected_rows(self.dataset, self.split, Holdout(self.holdout))
        return len({row["key"] for row in rows}.intersection(trained.keys))

    def check(self, entry: str) -> None:
        """Checks that an entry of `--models` was not trained on the images to test on. A model
        without a record of its training images passes.

        Raises:
          UsageError: the model was trained on some of the images, and `allow_overlap` is not set.
        """
        trained = None if self.allow_overlap else metadata_of_entry(entry)
        count = self.overlap(trained) if trained else 0
        if not trained or not count:
            return
        share = f"--holdout {trained.holdout:g}"
        remedy = f"{share}, as it was trained" if trained.holdout else "another --eval_split"
        raise UsageError(
            f"{entry} was trained on {count} of the images to test on: test with {remedy}, or add "
            "--allow_overlap to mark the result"
        )


def refuse_overlap(entry: str, subset: EvalSubset) -> None:
    """Does the same as `EvalSubset.check`, but raises ModelError, so that only this model fails."""
    try:
        subset.check(entry)
    except UsageError as error:
        raise ModelError(str(error)) from error


def check_entries(entries: Iterable[str], subset: EvalSubset) -> None:
    """Calls `EvalSubset.check` for each of several entries."""
    for entry in entries:
        subset.check(entry)
