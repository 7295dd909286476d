"""The parts of an analysis: its plan, its results, and what people see of them."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import msgspec

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.panel import Claim, Panel
from pipeline.evaluate.comparisons import Sample
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from pipeline.evaluate.results import ModelRun, Table
from transforms.taxonomy import Taxonomy
from transforms.variants import VariantName

if TYPE_CHECKING:
    from pipeline.display.plot import Plot


class Found(NamedTuple):
    """The results of single models on the present dataset, in order of their folders.

    `stale` names models that the page says are not shown, because their results belong to an
    earlier state of the dataset.
    """

    of_models: Sequence[ModelRun] = ()
    stale: Sequence[str] = ()
    of_dataset: Sequence[object] = ()


class Changed(NamedTuple):
    """Changes of results between two states of a dataset.

    Attributes:
      short: the most important changes, for the line that sums up changes.md.
      unchanged: what to say has not changed if `short` is empty.
      lines: all changes, as lines of changes.md.
    """

    short: Sequence[str]
    unchanged: str
    lines: Sequence[str]


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags that ask for an analysis; a subclass has those of its own.

    A field has the flag's name, and a default, since only some commands have the flag.
    """

    command: str


F = TypeVar("F", bound=Flags)


class Parts(Generic[F]):
    """The parts of an analysis. Every part is optional: a subclass has what it needs.

    Many commands need only tables and results, so what is slow to import, such as figures, is
    imported when it is used.

    Attributes:
      flags: type of the flags that ask for it.
      tables: its tables, in the order of the reference.
      figures: names of its figures' files, without suffix; a name that ends with `-` is the
        beginning of several names.
      panels: its sections of the page.
      claims: the authors' claims that its results decide, with those of analyses before it.
    """

    flags: type[F]
    tables: tuple[Table, ...] = ()
    figures: tuple[str, ...] = ()
    panels: tuple[Panel, ...] = ()
    claims: tuple[Claim, ...] = ()

    def plan(
        self,
        flags: F,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> PlannedAnalysis | None:
        """Plans what the models are to do; None if the flags do not ask for the analysis.

        Raises UsageError if a flag is wrong, or the dataset lacks what the analysis needs.
        """
        return None

    def expected_pictures(
        self, work: PlannedAnalysis, images: float, variants: Sequence[VariantName]
    ) -> int | None:
        """Estimates how many pictures a model is shown; None if the time does not follow from it.

        `images` are those expected to be tested; `variants` are the dataset's, replicates included.
        """
        return None

    def dry_run_lines(
        self, work: PlannedAnalysis, sample: Sample, variants: Sequence[VariantName]
    ) -> Iterator[str]:
        """Yields what `--dry_run` says of results; arguments as for `expected_pictures`."""
        yield from ()

    def find(self, dataset: Dataset) -> Found:
        """Reads the results on the present dataset."""
        return Found()

    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        """Rebuilds the tables; empty `columns` are the default. The caller must hold their lock."""

    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        """Yields what a job prints at its end; `work` is None if it did not run the analysis."""
        yield from ()

    def monitored(self, dataset: Dataset, work: PlannedAnalysis) -> dict[str, object]:
        """Returns fields of a job's summary for monitoring."""
        return {}

    def changes(self, before: Dataset, after: Dataset, causes: Sequence[str]) -> Changed | None:
        """Describes how results on two states differ; None if changes.md says nothing of them."""
        return None

    def plots(self, evidence: Evidence) -> Iterator[Plot]:
        """Makes the figures with results, by `make_plots` of its module `figures` if it has any."""
        if self.figures:
            # Imported here, because Matplotlib is slow to import.
            package = type(self).__module__.rpartition(".")[0]
            yield from pkgutil.resolve_name(f"{package}.figures:make_plots")(evidence)
