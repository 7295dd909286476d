"""Leakage: whether images of a test are among those that a checkpoint was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout, selected_rows
from pipeline.errors import ModelError, UsageError
from pipeline.models.checkpoint import TrainedOn, metadata_of_entry


@dataclasses.dataclass(frozen=True)
class EvalSubset:
    """What a model is tested on.

    Attributes:
      dataset: the dataset.
      split: its split.
      holdout: share of it that is tested on, 0 for all images.
      allow_overlap: whether they may have been trained on.
    """

    __test__ = False  # No test of pytest's.

    dataset: Dataset
    split: str
    holdout: float
    allow_overlap: bool

    def overlap(self, trained: TrainedOn) -> int:
        """How many of the tested images a checkpoint was trained on."""
        rows = selected_rows(self.dataset, self.split, Holdout(self.holdout))
        return len({row["key"] for row in rows}.intersection(trained.keys))

    def check(self, entry: str) -> None:
        """Checks an entry of `--models`; those that do not say what they were trained on pass.

        Raises:
          UsageError: some images were trained on, and nobody has allowed it.
        """
        trained = None if self.allow_overlap else metadata_of_entry(entry)
        found = self.overlap(trained) if trained else 0
        if not trained or not found:
            return
        share = f"--holdout {trained.holdout:g}"
        tests = f"{share}, as it was trained" if trained.holdout else "another --eval_split"
        raise UsageError(
            f"{entry} was trained on {found} of the images to test on: test with {tests}, or add "
            "--allow_overlap to mark the result"
        )


def refuse_overlap(entry: str, test: EvalSubset) -> None:
    """`EvalSubset.check` where models are run. Raises ModelError."""
    try:
        test.check(entry)
    except UsageError as error:
        raise ModelError(str(error)) from error


def check_entries(entries: Iterable[str], test: EvalSubset) -> None:
    """`EvalSubset.check` of several entries."""
    for entry in entries:
        test.check(entry)


def training_note(entry: str, test: EvalSubset) -> dict[str, Any]:
    """What results say of how a checkpoint was trained; empty for those that do not say."""
    trained = metadata_of_entry(entry)
    if trained is None:
        return {}
    names = ("variant", "dataset", "split", "holdout", "method", "pretrained", "epochs", "seed")
    note = trained.note()
    return {
        "overlap": test.overlap(trained),
        "trained": {
            **{name: note[name] for name in (*names, "images", "keys_sha256")},
            # Of a linear probe.
            **{name: note["settings"][name] for name in ("penalty",) if name in note["settings"]},
        },
    }
