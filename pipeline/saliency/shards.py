"""Output shards as saliency sees them: pictures with their masks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

from pipeline.dataset.fingerprints import SALIENCY_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.sinks import Sample
from pipeline.errors import JobError
from pipeline.models import LoadedModel
from pipeline.results.files import result_shard
from pipeline.saliency.plan import SaliencyPlan


@dataclasses.dataclass(frozen=True, eq=False)
class SaliencyShards:
    """A model's output shards: what is made of them, and what that depends on.

    Attributes:
      dataset: that they are of.
      plan: what is done.
      model: the model.
      folder: its folder under `results/`.
    """

    dataset: Dataset
    plan: SaliencyPlan
    model: LoadedModel
    folder: str

    def path(self, shard: int) -> str:
        """Numbers of a shard."""
        return result_shard(self.folder, "saliency", self.plan.evaluation.split, shard)

    @functools.cached_property
    def _tested(self) -> list[str]:
        """Keys of the images that are tested on, of all shards, in order."""
        # Every shard's fingerprint holds all of them, and reading them is reading the whole index.
        return sorted(row["key"] for row in self.plan.evaluation.rows(self.dataset))

    def checksum(self, shard: int) -> str:
        """Fingerprint of everything but which images are shown."""
        evaluation, variant = self.plan.evaluation, self.plan.variant
        files = self.dataset.shard_files(evaluation.split, shard, (variant, "fg_mask"))
        return fingerprint(
            self.model.name,
            self.model.weights_sha256,
            dataclasses.asdict(self.model.preprocessing),
            dataclasses.asdict(evaluation.predict),
            [variant, self.plan.smoothgrad],
            SALIENCY_VERSION,
            [file.sha256 for file in files],
            *([self._tested] if evaluation.holdout else []),
            *self.dataset.own_taxonomy,
        )

    def samples(self, shard: int) -> Iterator[tuple[Sample, Sample]]:
        """(picture, mask) of each image.

        Raises:
          JobError: the variants hold different images.
        """
        split = self.plan.evaluation.split
        pictures = self.dataset.samples(split, shard, self.plan.variant)
        masks = self.dataset.samples(split, shard, "fg_mask")
        tested = {row["key"] for row in self.plan.evaluation.rows(self.dataset, shard)}
        for picture, mask in itertools.zip_longest(pictures, masks):
            if picture is None or mask is None or picture.key != mask.key:
                raise JobError(
                    f"shard {shard} holds other images in {self.plan.variant} than in fg_mask; "
                    "see: in9 verify"
                )
            if picture.key in tested:
                yield picture, mask
