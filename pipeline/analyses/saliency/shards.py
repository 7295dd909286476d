"""A model on output shards: how much of each picture's saliency lies on its mask, and maps.

Numbers of a (model, shard) are one file, keyed by weights, pixels and what is done with them:
what is there for the same key is not computed again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from pipeline.analyses.saliency.gradients import answer_gradients
from pipeline.analyses.saliency.plan import SaliencyPlan
from pipeline.analyses.saliency.results import (
    SALIENCY_SCHEMA,
    has_picture,
    number,
    saliency_picture,
    write_picture,
)
from pipeline.dataset.fingerprints import SALIENCY_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import ShardFiles, read_about, write_table
from pipeline.dataset.sinks import Sample
from pipeline.errors import JobError
from pipeline.evaluate.results import result_shard
from pipeline.models import LoadedModel
from pipeline.models.predict import Predictor
from pipeline.runtime.counters import count, count_written
from transforms.codec import decode_image, decode_mask
from transforms.saliency import mass_in_mask, overlay, saliency_map
from transforms.scoring import labels_of_outputs
from transforms.taxonomy import Taxonomy


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
            variant,
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


def explain_shard(
    shards: SaliencyShards,
    predictor: Predictor | None,
    taxonomy: Taxonomy,
    shard: int,
    keys: Sequence[str],
) -> str | None:
    """Makes what is missing of a shard: its numbers, and the maps of some pictures.

    Args:
      shards: that it is one of.
      predictor: their model on its device, None where there is none.
      taxonomy: of the labels.
      shard: its number.
      keys: of the pictures in it that are shown.

    Returns:
      The path of the numbers; None if something is missing, and there is no device to make it on.

    Raises:
      ModelError: the model fails, or gives no gradient.
      JobError: a stored picture cannot be decoded.
    """
    store, path, checksum = shards.dataset.store, shards.path(shard), shards.checksum(shard)
    missing = {
        key
        for key in keys
        if not has_picture(store, saliency_picture(shards.folder, key), checksum)
    }
    there = read_about(store, path)
    is_there = there is not None and there.fingerprint == checksum
    if is_there and not missing:
        count("saliency_shards_kept")
        return path
    if predictor is None:
        return None
    samples = shards.samples(shard)
    if is_there:
        count("saliency_shards_kept")
        samples = ((picture, mask) for picture, mask in samples if picture.key in missing)
    output_labels = labels_of_outputs(shards.model.num_outputs, taxonomy)
    rows = []
    while batch := list(itertools.islice(samples, shards.plan.batch_size)):
        pictures = np.stack([decode_image(picture.image) for picture, _ in batch])
        masks = [decode_mask(mask.image) for _, mask in batch]
        tensor = torch.from_numpy(pictures).to(predictor.device).permute(0, 3, 1, 2).float() / 255
        logits, gradients = answer_gradients(predictor, tensor)
        for i, (picture, _) in enumerate(batch):
            saliency = saliency_map(gradients[i])
            if picture.key in missing:
                shown = overlay(pictures[i], saliency, masks[i])
                write_picture(store, saliency_picture(shards.folder, picture.key), shown, checksum)
                count("saliency_maps_made")
            output = int(logits[i].argmax())
            rows.append(
                {
                    "key": picture.key,
                    "label": picture.fields["label"],
                    "prediction": int(output_labels[output]),
                    "output": output,
                    "mass_in_mask": number(mass_in_mask(saliency, masks[i])),
                    "mask_area": float(masks[i].mean()),
                }
            )
        count("images_explained", len(batch))
    if not is_there:
        table = pa.Table.from_pylist(rows, SALIENCY_SCHEMA)
        count_written([write_table(store, path, table, ShardFiles(checksum, ()))])
        count("saliency_shards_made")
    return path
