"""The state that a dataset is in: what two versions of it are compared by."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.results import result_folder
from pipeline.evaluate.summaries import read_summaries

Summary = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class State:
    """A dataset with results.

    Attributes:
      dataset: the dataset.
      summaries: of its models, by their folder under `results/`.
    """

    dataset: Dataset
    summaries: dict[str, Summary]

    @classmethod
    def of(cls, dataset: Dataset) -> State:
        """The state that a dataset folder is in."""
        summaries = {
            result_folder(summary["model"], summary["evaluation"]): summary
            for summary in read_summaries(dataset)[0]
        }
        return cls(dataset, summaries)
