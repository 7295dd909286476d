"""Job: what a dataset is made of, and into what."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.records import Staging
from pipeline.dataset.shards import ShardCounts
from pipeline.errors import UsageError
from pipeline.generate.commit import STAGING
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.key_lists import KeyList, KeyLists, read_key_list
from pipeline.runtime.lock import fenced_for_job
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy


@dataclasses.dataclass(frozen=True)
class GenerateJob:
    """What to make, from what, into what.

    Attributes:
      config: of the dataset.
      layouts: where images and annotations of each split lie.
      taxonomy: classes and superclasses.
      store: the dataset folder.
      progress: where workers note what is done.
      previous: by split, numbers of shards of the dataset as it stands.
      reshard: choose the numbers of shards anew.
      guarded: stages that the dataset as it stands was made with, if the job must not make much
        of it again (`pipeline.generate.guard`); None if it may.
      masks: folder or file of masks, for a segmenter that takes them.
      exclude, include: absolute paths of lists of images, if any.
      scenes: absolute path of the folder of scenes, if there is one.
    """

    config: DatasetConfig
    layouts: tuple[SplitLayout, ...]
    taxonomy: Taxonomy
    store: Store
    progress: Progress
    previous: dict[str, ShardCounts]
    reshard: bool = False
    guarded: dict[str, Any] | None = None
    masks: str | None = None
    exclude: str | None = None
    include: str | None = None
    scenes: str | None = None

    def key_lists(self) -> KeyLists:
        """The lists of images.

        Raises:
          UsageError: one of them is not what it was when the job was launched.
        """
        lists: dict[str, KeyList] = {}
        for name, path in (("exclude", self.exclude), ("include", self.include)):
            if path is not None:
                lists[name] = read_key_list(path, f"--{name}")
                if lists[name].about != getattr(self.config, name):
                    raise UsageError(f"--{name} {path} has changed since this run was started")
        return KeyLists(**lists)

    def layer_staging(self) -> Staging:
        """Where new layers wait: by what decides them, so that another seed of the pairing
        finds them there."""
        return Staging(fenced_for_job(self.store), f"{STAGING}/{self.config.segment.fingerprint()}")

    def output_staging(self) -> Staging:
        """Where new output shards wait."""
        return Staging(fenced_for_job(self.store), f"{STAGING}/{self.config.compose.fingerprint()}")
