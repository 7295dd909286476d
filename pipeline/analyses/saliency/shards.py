"""A model on output shards: how much of each picture's saliency lies on its mask, and maps.

Numbers of a shard are one file, keyed by weights, pixels and what is done with them: what is there
for the same key is not computed again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.analyses.saliency.plan import ACTIVATIONS, SaliencyPlan
from pipeline.analyses.saliency.results import (
    SALIENCY_SCHEMA,
    has_picture,
    number,
    saliency_picture,
    write_picture,
)
from pipeline.dataset.fingerprints import SALIENCY_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.sinks import Sample
from pipeline.errors import JobError
from pipeline.evaluate.predictions import About
from pipeline.evaluate.results import result_folder, result_shard
from pipeline.evaluate.work import Made, ModelWork, NoteDone
from pipeline.storage.parallel import InBackground
from transforms.codec import decode_image, decode_mask
from transforms.saliency import mass_in_mask, overlay, saliency_map
from transforms.scoring import labels_of_outputs

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor


class SaliencyShards(ModelWork):
    """Numbers of a model's saliency on output shards, and maps of some pictures.

    Args:
      dataset: that they are of.
      plan: what is done.
      about: the model, and how it is run.
      shown: key to output shard of the pictures that maps are made of.
    """

    def __init__(
        self, dataset: Dataset, plan: SaliencyPlan, about: About, shown: Mapping[str, int]
    ) -> None:
        super().__init__(dataset.store)
        self._dataset, self._plan, self._about, self._shown = dataset, plan, about, shown
        self._folder = result_folder(about["model"], about["evaluation"])

    def path(self, unit: int) -> str:
        """As `ModelWork.path`."""
        return result_shard(self._folder, "saliency", self._plan.evaluation.split, unit)

    @functools.cached_property
    def _tested(self) -> list[str]:
        """Keys of the images that are tested on, of all shards, in order."""
        # Every shard's fingerprint holds all of them, and reading them is reading the whole index.
        return sorted(row["key"] for row in self._plan.evaluation.rows(self._dataset))

    def checksum(self, unit: int) -> str:
        """As `ModelWork.checksum`: of everything but which images are shown."""
        evaluation, variant = self._plan.evaluation, self._plan.variant
        files = self._dataset.shard_files(evaluation.split, unit, (variant, "fg_mask"))
        return fingerprint(
            *(self._about[name] for name in ("model", "weights_sha256", "preprocessing")),
            evaluation.predict.asked_for,
            variant,
            SALIENCY_VERSION,
            [file.sha256 for file in files],
            *([self._tested] if evaluation.holdout else []),
            *self._dataset.own_taxonomy,
        )

    def is_there(self, unit: int) -> bool:
        """As `ModelWork.is_there`, and the maps are."""
        return super().is_there(unit) and not self._missing_maps(unit)

    def _missing_maps(self, shard: int) -> frozenset[str]:
        """Keys of the pictures of which the map is missing."""
        checksum = self.checksum(shard)
        keys = (key for key, place in self._shown.items() if place == shard)
        return frozenset(
            key
            for key in keys
            if not has_picture(self.store, saliency_picture(self._folder, key), checksum)
        )

    def make(
        self, predictor: Predictor, units: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[Made, None, None]:
        """As `ModelWork.make`; a model that gives no gradient fails."""
        for shard in missing:
            # Where the numbers are there, maps are missing.
            keys = self._missing_maps(shard) if super().is_there(shard) else None
            rows = list(self._explain(predictor, shard, keys, note))
            if keys is None:
                yield Made(shard, pa.Table.from_pylist(rows, SALIENCY_SCHEMA))

    def _explain(
        self, predictor: Predictor, shard: int, keys: frozenset[str] | None, note: NoteDone
    ) -> Iterator[dict[str, object]]:
        """Rows of a shard, of some keys alone if they are given; writes the maps that are
        missing."""
        # Only who explains waits for torch.
        from pipeline.analyses.saliency.gradients import answer_gradients

        missing, checksum = self._missing_maps(shard), self.checksum(shard)
        output_labels = labels_of_outputs(self._about["num_outputs"], self._dataset.taxonomy)
        decoded = (
            (picture, decode_image(picture.image), decode_mask(mask.image))
            for picture, mask in self._samples(shard)
            if keys is None or picture.key in keys
        )
        # A backward pass needs all activations.
        size = max(1, predictor.batch_size // ACTIVATIONS)
        # The next batch is decoded while the device works.
        with contextlib.closing(InBackground(decoded, size)) as ahead:
            samples = iter(ahead)
            while batch := list(itertools.islice(samples, size)):
                pixels = np.stack([of_picture for _, of_picture, _ in batch])
                logits, gradients = answer_gradients(predictor, predictor.to_device(pixels))
                for i, (picture, of_picture, mask) in enumerate(batch):
                    saliency = saliency_map(gradients[i])
                    if picture.key in missing:
                        path = saliency_picture(self._folder, picture.key)
                        shown = overlay(of_picture, saliency, mask)
                        write_picture(self.store, path, shown, checksum)
                    output = int(logits[i].argmax())
                    yield {
                        "key": picture.key,
                        "label": picture.fields["label"],
                        "prediction": int(output_labels[output]),
                        "output": output,
                        "mass_in_mask": number(mass_in_mask(saliency, mask)),
                        "mask_area": float(mask.mean()),
                    }
                note(shard, len(batch), len(batch))

    def _samples(self, shard: int) -> Iterator[tuple[Sample, Sample]]:
        """(picture, mask) of each image.

        Raises:
          JobError: the variants hold different images.
        """
        split = self._plan.evaluation.split
        pictures = self._dataset.samples(split, shard, self._plan.variant)
        masks = self._dataset.samples(split, shard, "fg_mask")
        tested = {row["key"] for row in self._plan.evaluation.rows(self._dataset, shard)}
        for picture, mask in itertools.zip_longest(pictures, masks):
            if picture is None or mask is None or picture.key != mask.key:
                raise JobError(
                    f"shard {shard} holds other images in {self._plan.variant} than in fg_mask; "
                    "see: in9 verify"
                )
            if picture.key in tested:
                yield picture, mask
