"""The log of a training. Each epoch has a progress bar, a line of output and a row of a table."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.runtime.progress import duration
from pipeline.storage.csv_file import csv_bytes
from pipeline.storage.store import Store

LOG = "log.csv"
"""Name of the table in the folder of the training."""


@dataclasses.dataclass(frozen=True)
class EpochLog:
    """Measurements of one epoch. Losses are mean cross entropies, in nats.

    Attributes:
      epoch: number of the epoch, counted from 1.
      lr: learning rate.
      loss, accuracy: loss and accuracy on the augmented training pictures, during the epoch.
      val_loss, val_accuracy: loss and accuracy on the validation pictures, after the epoch; None
        without validation.
      images_per_second: number of training images per second.
      data_wait: share of the training time (0 to 1) that was spent waiting for pictures.
      seconds: duration of the epoch in seconds, including validation.
    """

    epoch: int
    lr: float
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    images_per_second: float
    data_wait: float
    seconds: float

    def line(self, epochs: int, seconds_left: float, *, is_first: bool) -> str:
        """Formats the epoch as a line of output.

        Args:
          epochs: number of epochs of the training.
          seconds_left: estimated time until the training ends; 0 after its last epoch.
          is_first: whether this is the first epoch that this process trains. Its line does not
            report the time spent waiting for pictures, because the processes that load them had
            only just started.
        """
        text = f"epoch {self.epoch} of {epochs}: loss {self.loss:.3f}, "
        text += f"accuracy {100 * self.accuracy:.1f} %"
        if self.val_accuracy is not None:
            text += f"; validation {self.val_loss:.3f}, {100 * self.val_accuracy:.1f} %"
        text += f"; {self.images_per_second:.1f} images/s"
        if self.data_wait >= 0.1 and not is_first:
            text += f" ({100 * self.data_wait:.0f} % of the time waiting for pictures: --workers)"
        return text + (f", {duration(seconds_left)} left" if seconds_left else "")


COLUMNS = tuple(field.name for field in dataclasses.fields(EpochLog))
"""Columns of `log.csv`."""


class TrainingLog:
    """The table of the epochs so far, and the line of output of each new epoch.

    Args:
      store: folder of the training.
      epochs: number of epochs of the training.
      rows: rows of the epochs that are already done, with the fields of `EpochLog`.

    Attributes:
      rows: rows of all epochs so far.
    """

    def __init__(self, store: Store, epochs: int, rows: Sequence[dict[str, Any]]) -> None:
        self._store = store
        self._epochs = epochs
        self._new = 0  # Number of epochs that this process has added.
        self.rows = list(rows)

    def add(self, epoch: EpochLog) -> None:
        """Adds a finished epoch, and prints its line."""
        self.rows.append(dataclasses.asdict(epoch))
        self._new += 1
        # Epochs of an earlier process may have run on another machine, so they do not count.
        mean_seconds = sum(row["seconds"] for row in self.rows[-self._new :]) / self._new
        seconds_left = mean_seconds * (self._epochs - epoch.epoch)
        print(epoch.line(self._epochs, seconds_left, is_first=self._new == 1))

    def write(self) -> None:
        """Writes the table of all epochs so far to `LOG`."""
        self._store.write(LOG, csv_bytes(COLUMNS, self.rows))


@contextlib.contextmanager
def epoch_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a live bar for an epoch if standard error is a terminal.

    Args:
      name: text before the bar, such as `epoch 3 of 200`.
      total: number of images in the epoch.

    Yields:
      A function that advances the bar by a number of images.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    # Imported only here, so that a training without a terminal needs no rich.
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("images"),
        progress.TimeRemainingColumn(),
    )
    console = Console(file=sys.stderr)
    with progress.Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.update(task, advance=count, refresh=True)
