"""The job that makes a dataset: its input, its settings and its folder."""

import dataclasses
from collections.abc import Mapping

import apache_beam as beam
import cv2

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.manifest import NOTHING_STATED, About
from pipeline.dataset.records import ShardCounts, Staging
from pipeline.generate.commit import STAGING
from pipeline.generate.cut_source import Cutter
from pipeline.generate.origin import InputOrigin, Origin
from pipeline.inputs.input_format import SplitLayout
from pipeline.runtime.lock import fenced_for_job
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy


@dataclasses.dataclass(frozen=True)
class GenerateJob:
    """A job that makes a dataset.

    Attributes:
      previous: numbers of shards of the existing dataset, by split.
      source: absolute path of `--input`, then `--input_columns` if given; empty for the sample.
      reshard: whether to choose new numbers of shards instead of `previous`.
      guarded: stages of the existing dataset from its manifest, to stop a job that would make much
        of the dataset again (`pipeline.generate.previous_layers`); None to let any job run.
      scenes: absolute path of the folder of scenes.
      origin: where the layers come from.
    """

    config: DatasetConfig
    layouts: tuple[SplitLayout, ...]
    taxonomy: Taxonomy
    store: Store
    progress: Progress
    previous: dict[str, ShardCounts]
    source: str = ""
    reshard: bool = False
    guarded: Mapping[str, object] | None = None
    scenes: str | None = None
    origin: Origin = dataclasses.field(default_factory=InputOrigin)
    about: About = NOTHING_STATED

    def cutter(self) -> Cutter:
        """Returns what cuts the layers."""
        return self.origin.cutter(self.config.segment)

    def layer_staging(self) -> Staging:
        """Returns the staging folder of layers, which a job that draws other pairs still finds."""
        return Staging(fenced_for_job(self.store), f"{STAGING}/{self.config.segment.fingerprint()}")

    def output_staging(self) -> Staging:
        """Returns the staging folder of output shards.

        Its name depends on the origin, too, because a recipe's layers may differ from those that
        were segmented.
        """
        name = f"{self.config.compose.fingerprint()}{self.origin.digest}"
        return Staging(fenced_for_job(self.store), f"{STAGING}/{name}")


class JobStep(beam.DoFn):
    """A step of the graph. OpenCV computes in one thread, as the runner's workers run at once."""

    def __init__(self, job: GenerateJob) -> None:
        self.job, self.config = job, job.config
        self.layers, self.outputs = job.layer_staging(), job.output_staging()

    def setup(self) -> None:
        cv2.setNumThreads(1)
