"""Job: what a dataset is made of, and into what."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.records import Staging
from pipeline.dataset.shards import ShardCounts
from pipeline.errors import UsageError
from pipeline.generate.commit import STAGING
from pipeline.inputs.key_lists import KeyList, KeyLists, read_key_list
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy, imagenet9


@dataclasses.dataclass(frozen=True)
class Job:
    """What to make, from what, into what.

    Attributes:
      config: of the dataset.
      source: the input folder, or a file with images.
      annotations: a folder or file of annotations, None to look beside the images.
      store: the dataset folder.
      progress: where workers note what is done.
      previous: by split, numbers of shards of the dataset as it stands.
      reshard: choose the numbers of shards anew.
      guarded: stages that the dataset as it stands was made with, if the job must not make much
        of it again (`pipeline.generate.guard`); None if it may.
      masks: folder or file of masks, for a segmenter that takes them.
      exclude, include: absolute paths of lists of images, if any.
      taxonomy: classes and superclasses.
      scenes: absolute path of the folder of scenes, if there is one.
    """

    config: DatasetConfig
    source: str
    annotations: str | None
    store: Store
    previous: dict[str, ShardCounts]
    progress: Progress
    reshard: bool = False
    guarded: dict[str, Any] | None = None
    masks: str | None = None
    exclude: str | None = None
    include: str | None = None
    taxonomy: Taxonomy = dataclasses.field(default_factory=imagenet9)
    scenes: str | None = None

    @classmethod
    def of(
        cls,
        config: DatasetConfig,
        *,
        source: str,
        annotations: str | None,
        store: Store,
        manifest: Manifest | None,
        reshard: bool,
        allow_rebuild: bool = False,
        masks: str | None = None,
    ) -> Job:
        """A job that builds on the dataset that a manifest describes, if there is one; what
        `allow_rebuild` lets it make again is said in `pipeline.generate.guard`."""
        previous = {} if manifest is None else manifest.shards
        progress = Progress.of(store)
        stages = None if manifest is None or allow_rebuild else manifest.stages
        return cls(config, source, annotations, store, previous, progress, reshard, stages, masks)

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
        return Staging(self.store, f"{STAGING}/{self.config.segment.fingerprint()}")

    def output_staging(self) -> Staging:
        """Where new output shards wait."""
        return Staging(self.store, f"{STAGING}/{self.config.compose.fingerprint()}")
