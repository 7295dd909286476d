"""What a training says: a line and a row for each epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.runtime.progress import duration
from pipeline.storage.csv_file import csv_bytes
from pipeline.storage.store import Store

LOG = "log.csv"


@dataclasses.dataclass(frozen=True)
class EpochLog:
    """One epoch. Losses are means of the cross entropy, in nats.

    Attributes:
      epoch: from 1 on.
      lr: learning rate.
      loss, accuracy: on the training pictures as they were augmented, while they were learnt.
      val_loss, val_accuracy: on the pictures as they are, after the epoch; None without any.
      images_per_second: of training.
      data_wait: share of the training time that was spent waiting for pictures.
      seconds: with validation.
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
        """As the terminal shows it; in the first epoch of a process, loaders are just starting."""
        text = f"epoch {self.epoch} of {epochs}: loss {self.loss:.3f}, "
        text += f"accuracy {100 * self.accuracy:.1f} %"
        if self.val_accuracy is not None:
            text += f"; validation {self.val_loss:.3f}, {100 * self.val_accuracy:.1f} %"
        text += f"; {self.images_per_second:.1f} images/s"
        if self.data_wait >= 0.1 and not is_first:
            text += f" ({100 * self.data_wait:.0f} % of the time waiting for pictures: --workers)"
        return text + (f", {duration(seconds_left)} left" if seconds_left else "")


def say_now(line: str) -> None:
    """Prints a line at once: a file of what takes days is read while it grows."""
    print(line, flush=True)


COLUMNS = tuple(field.name for field in dataclasses.fields(EpochLog))
"""Of the log."""


class TrainingLog:
    """The epochs so far, in a folder and on the terminal.

    Args:
      store: the folder.
      epochs: in all.
      rows: of the epochs that were done before, of `EpochLog`'s fields.
      say: takes a line.
    """

    def __init__(
        self,
        store: Store,
        epochs: int,
        rows: Sequence[dict[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._epochs = epochs
        self._say = say
        self._now = 0
        self.rows = list(rows)

    def add(self, epoch: EpochLog) -> None:
        """Notes a finished epoch."""
        self.rows.append(dataclasses.asdict(epoch))
        self._now += 1
        mean = sum(row["seconds"] for row in self.rows[-self._now :]) / self._now
        left = mean * (self._epochs - epoch.epoch)
        self._say(epoch.line(self._epochs, left, is_first=self._now == 1))

    def write(self) -> None:
        """Writes the table."""
        self._store.write(LOG, csv_bytes(COLUMNS, self.rows))


@contextlib.contextmanager
def epoch_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far an epoch is: a live bar on a terminal, nothing elsewhere.

    Args:
      name: of the epoch.
      total: images in it.

    Yields:
      A function that takes the number of images that are done since its last call.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.update(task, advance=count, refresh=True)
