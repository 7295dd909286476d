"""The ImageNet-9 job: sources, graph, sinks, evaluation, report and command line.

import pipeline

dataset = pipeline.open_dataset("out", "mixed_rand")
for image, label, meta in dataset:
    ...
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.dataset.reading import DatasetReader

__all__ = ["open_dataset"]


def open_dataset(
    path: str | os.PathLike[str], variant: str | None = None, split: str | None = None
) -> DatasetReader:
    """Opens a finished dataset for reading: without Beam, and without torch.

    Args:
      path: its folder, here or `gs://`; of published versions, the newest is read.
      variant: such as `mixed_rand`; the first one, mostly `original`, if None.
      split: such as `val`; that, or the first one, if None.

    Raises:
      UsageError: there is no finished dataset.
      ValueError: it has no such variant or split; the message lists those that it has.
    """
    from pipeline.dataset.reading import DatasetReader  # Commands need not wait for what it needs.

    return DatasetReader.open(os.fspath(path), variant, split)
