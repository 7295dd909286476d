"""The job that makes a dataset: its input, its settings and its folder."""

import dataclasses
from collections.abc import Mapping

import apache_beam as beam

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.manifest import NOTHING_STATED, About
from pipeline.dataset.records import ShardCounts, Staging
from pipeline.errors import UsageError
from pipeline.generate.commit import STAGING
from pipeline.generate.cut_source import Cutter, MaskCutter
from pipeline.generate.recipe import Recipe
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.lists import KeyList, read_key_list
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
      masks: folder or file of masks, for a segmenter that takes them; None without `--masks`.
      exclude, include, scenes: absolute paths of lists of images, and of the folder of scenes.
      recipe: the recipe to make the dataset from; None to segment.
      allow_partial: whether a dataset is made from the recipe if pictures are missing.
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
    masks: str | None = None
    exclude: str | None = None
    include: str | None = None
    scenes: str | None = None
    recipe: Recipe | None = None
    allow_partial: bool = False
    about: About = NOTHING_STATED

    def key_lists(self) -> list[KeyList]:
        """Reads the lists of images.

        Raises UsageError if a list cannot be read, or has changed since the job was launched.
        """
        lists = []
        for name, path in (("exclude", self.exclude), ("include", self.include)):
            if path is not None:
                lists.append(read_key_list(path, f"--{name}"))
                if lists[-1].summary != getattr(self.config, name):
                    raise UsageError(f"--{name} {path} has changed since this run was started")
        return lists

    def cutter(self) -> Cutter:
        """Returns what gives the layers: the segmenter, or the masks of the recipe."""
        segment, recipe = self.config.segment, self.recipe
        return MaskCutter(segment, recipe) if recipe else Cutter(segment)

    def layer_staging(self) -> Staging:
        """Returns the staging folder of layers, which a job that draws other pairs still finds."""
        return Staging(fenced_for_job(self.store), f"{STAGING}/{self.config.segment.fingerprint()}")

    def output_staging(self) -> Staging:
        """Returns the staging folder of output shards.

        Its name depends on the recipe, too, whose layers may differ from those that were segmented.
        """
        recipe = self.recipe.sha256 if self.recipe else ""
        return Staging(
            fenced_for_job(self.store), f"{STAGING}/{self.config.compose.fingerprint()}{recipe}"
        )


class JobStep(beam.DoFn):
    """A step of the graph."""

    def __init__(self, job: GenerateJob) -> None:
        self.job, self.config = job, job.config
        self.layers, self.outputs = job.layer_staging(), job.output_staging()
