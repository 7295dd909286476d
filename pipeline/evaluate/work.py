"""The interface of a stage that runs models, unit by unit.

A unit is a part of the pictures whose results are one file, such as an output shard. A stage
defines its units, what it computes for each unit, and how it summarizes a model at the end. All
stages share the code that loads models, finds missing units, reports progress and writes files
(`pipeline.evaluate.model_stage`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import pyarrow as pa

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.results import ModelRun
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor

_PICTURES_OF_BLOCK = 1 << 13
"""Pictures in a block, unless `--gpus` says otherwise: about those of an output shard of the
default size in the paper's variants. Each block loads its model anew."""

NoteDone = Callable[[int, int, int], None]
"""(unit, new, done) -> None. Since the last call, `new` pictures of the unit were shown to the
model, and `done` pictures were finished; `done` includes pictures found in an earlier file."""


class UnitOutput(NamedTuple):
    """The output of a unit, to be written to its file.

    Attributes:
      unit: number of the unit.
      table: rows of the unit's file.
      is_complete: whether the table has all rows of the unit; if not, the complete output follows.
    """

    unit: int
    table: pa.Table
    is_complete: bool = True


class ModelWork(abc.ABC):
    """The work of a stage on one model, which makes a file for each unit.

    Args:
      store: the dataset folder.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @abc.abstractmethod
    def path(self, unit: int) -> str:
        """Returns the path of a unit's file."""

    @abc.abstractmethod
    def fingerprint(self, unit: int) -> str:
        """Returns a fingerprint of everything that a unit's file depends on."""

    def is_done(self, unit: int) -> bool:
        """Returns whether a unit's file exists and has the unit's present fingerprint."""
        metadata = read_metadata(self.store, self.path(unit))
        return metadata is not None and metadata.fingerprint == self.fingerprint(unit)

    def fingerprint_to_store(self, output: UnitOutput) -> str:
        """Returns the fingerprint to write into a unit's file. It is empty for a partial output, so
        that the unit does not count as done."""
        return self.fingerprint(output.unit) if output.is_complete else ""

    @abc.abstractmethod
    def run(
        self, predictor: Predictor, units: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[UnitOutput, None, None]:
        """Runs the model on the missing units, and yields their outputs.

        Args:
          predictor: the model on its device.
          units: all units of the group, in rising order.
          missing: the units that are not done, in rising order.
          note: called with the progress after each batch.

        Raises:
          ModelError: the model fails.
          JobError: a picture cannot be decoded.
        """


class Work(abc.ABC):
    """A stage that runs models.

    Args:
      evaluation: the models, and their settings.
      taxonomy: the classes that the heads of models must fit.

    Attributes:
      stage: name of the stage, under which time, progress and failures are recorded.
      unit_name: name that counters use for the stage's units.
      pictures_name: name that counters use for pictures shown to models.
      refuses_overlap: whether the stage refuses models that were trained on tested images.
    """

    stage: ClassVar[str]
    unit_name: ClassVar[str]
    pictures_name: ClassVar[str]
    refuses_overlap: ClassVar[bool]

    def __init__(self, evaluation: Evaluation, taxonomy: Taxonomy) -> None:
        self.evaluation = evaluation
        self.taxonomy = taxonomy

    @abc.abstractmethod
    def units(self, dataset: Dataset) -> Sequence[int]:
        """Returns the numbers of all units, in rising order."""

    @abc.abstractmethod
    def size(self, dataset: Dataset, unit: int) -> int:
        """Returns the number of pictures in a unit, as progress counts them."""

    def groups(self, dataset: Dataset) -> int:
        """Returns the number of groups of units, each of which is a block of work with every
        model."""
        if self.evaluation.groups is not None:
            return self.evaluation.groups
        units = self.units(dataset)
        pictures = sum(self.size(dataset, unit) for unit in units)
        return max(1, min(len(units), pictures // _PICTURES_OF_BLOCK))

    @abc.abstractmethod
    def for_model(self, dataset: Dataset, run: ModelRun) -> ModelWork | None:
        """Returns the work on a model; None if the stage does not apply to it."""

    @abc.abstractmethod
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        """Writes the result of a model whose units are all done, and removes stale files.

        Args:
          dataset: the dataset that the model was run on.
          run: the model, and how it was run.
          entry: the model's entry of `--models`.
        """
