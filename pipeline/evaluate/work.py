"""Work: what a stage does with models, unit after unit.

A stage that runs models says here what is its own: which units there are, what is made of a unit,
and what is said of a model at the end. How models are loaded, what is left to do, progress and
writing are the same for all (`pipeline.evaluate.model_stage`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyarrow as pa

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata
from pipeline.evaluate.evaluation import Evaluation, describe_model
from pipeline.evaluate.prediction_files import ModelMetadata
from pipeline.models.identity import ModelIdentity
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor

NoteDone = Callable[[int, int, int], None]
"""(unit, new, done) -> nothing; takes how many pictures of a unit were shown to the model since the
last call, and how many are done, those included that were there."""


class UnitOutput(NamedTuple):
    """What was made of a unit, to be written to its file.

    Attributes:
      unit: its number.
      table: all of it, or what is done so far.
      is_whole: whether it is all; else the whole follows.
    """

    unit: int
    table: pa.Table
    is_whole: bool = True


class ModelWork(abc.ABC):
    """What a stage does with one model: a file for each unit.

    Args:
      store: the dataset folder.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @abc.abstractmethod
    def path(self, unit: int) -> str:
        """File of a unit."""

    @abc.abstractmethod
    def checksum(self, unit: int) -> str:
        """Fingerprint of all that the file depends on."""

    def is_there(self, unit: int) -> bool:
        """Whether the file was made of the same, and need not be made again."""
        metadata = read_metadata(self.store, self.path(unit))
        return metadata is not None and metadata.fingerprint == self.checksum(unit)

    def fingerprint(self, made: UnitOutput) -> str:
        """What a file says that it was made of. One that is not whole is there for nobody."""
        return self.checksum(made.unit) if made.is_whole else ""

    @abc.abstractmethod
    def make(
        self, predictor: Predictor, units: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[UnitOutput, None, None]:
        """Makes what is missing.

        Args:
          predictor: the model on its device.
          units: rising, of which those that are missing are some.
          missing: rising.
          note: is told of each batch.

        Raises:
          ModelError: the model fails.
          JobError: a picture cannot be decoded.
        """


class Work(abc.ABC):
    """What a stage does with models.

    Args:
      evaluation: models, and how they are run.
      taxonomy: their heads must fit.

    Attributes:
      stage: whose time, progress and failures it is.
      unit_name: what counters call its units.
      pictures_name: what counters call pictures that were shown to a model.
      refuses_overlap: whether models are refused that were trained on what they are tested on.
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
        """Rising numbers of all units."""

    @abc.abstractmethod
    def size(self, dataset: Dataset, unit: int) -> int:
        """Pictures of a unit, as progress counts them."""

    def describe(self, dataset: Dataset, model: ModelIdentity) -> dict[str, Any]:
        """Which model, and how it is run here; fit for JSON."""
        return describe_model(model, self.evaluation, dataset)

    @abc.abstractmethod
    def begin(self, dataset: Dataset, metadata: ModelMetadata) -> ModelWork | None:
        """What is done with a model; None for one that the stage is not for."""

    @abc.abstractmethod
    def sum_up(self, dataset: Dataset, metadata: ModelMetadata, entry: str) -> None:
        """Writes what is said of a model, all of whose units are there, and removes what it is
        not made of.

        Args:
          dataset: that it was run on.
          metadata: the model.
          entry: of `--models`.
        """
