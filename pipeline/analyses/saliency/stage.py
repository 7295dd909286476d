"""The saliency stage: how much of a model's gradient lies on the foreground.

It also draws saliency maps of some images. The measures of an output shard are stored in one file.
It records a fingerprint of weights, pixels and settings, so a shard is not measured again while
these are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from typing_extensions import override

from pipeline.analyses.saliency.results import (
    SALIENCY_SCHEMA,
    SaliencyResult,
    has_map,
    map_path,
    map_rows,
    measure_mass,
    write_map,
)
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import Row
from pipeline.dataset.sinks import Sample
from pipeline.errors import UsageError, did_you_mean
from pipeline.evaluate.planned import (
    AnalysisOfModel,
    ChunkOutput,
    NoteDone,
    PlannedAnalysis,
)
from pipeline.evaluate.predictions import EvalImages, split_fingerprint
from pipeline.evaluate.results import ModelRun, pick, result_file, result_shard, write_result
from transforms.codec import decode_image, decode_mask
from transforms.geometry import Mask, Pixels
from transforms.hashing import fingerprint
from transforms.saliency import overlay
from transforms.scoring import labels_of_outputs
from transforms.selection import sample_evenly
from transforms.variants import MASK, ORIGINAL, VariantName

if TYPE_CHECKING:
    from pipeline.analyses.saliency.gradients import Explained
    from pipeline.models.predict import Predictor

SALIENCY_VERSION = 2
"""Raised by hand when Saliency would write other numbers or maps for the same pixels."""
METHOD = "gradient of the winning logit"
"""Name of the method in results. The saliency of a pixel is the largest absolute value of the
gradient among the pixel's channels."""

BATCH_DIVISOR = 4
"""Number that the evaluation's batch size is divided by, because a backward pass keeps all
activations in memory."""


def check_variants(variants: Sequence[VariantName], variant: str) -> None:
    """Raises UsageError if a dataset lacks the pictures to explain, or masks."""
    pictures = sorted(str(name) for name in variants if name.is_picture)
    if variant not in pictures:
        raise UsageError(
            f"saliency of {variant}: the dataset has {', '.join(pictures) or 'none'}"
            f"{did_you_mean(variant, pictures)}"
        )
    if MASK not in variants:
        raise UsageError(
            "saliency inside the mask needs the variant fg_mask, and the dataset has none; "
            "generate it with fg_mask: see --variants"
        )


@dataclasses.dataclass(eq=False)
class PlannedSaliency(PlannedAnalysis):
    """The stage that measures saliency on output shards.

    Attributes:
      variant: variant whose pictures are explained.
      num_maps: number of images to draw maps of, spread evenly over the classes.
    """

    stage = "saliency"

    variant: VariantName = ORIGINAL
    num_maps: int = 9
    _shown: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict, init=False)

    def rows(self, dataset: Dataset, shard: int | None = None) -> list[Row]:
        """Returns the index rows of the images whose pictures count (`EvalImages.counts`)."""
        rows, variant = self.evaluation.rows(dataset, shard), self.variant
        if self.evaluation.holdout and variant.is_mixed:
            tested = {row["key"] for row in self.evaluation.rows(dataset)}
            rows = [row for row in rows if row[f"{variant.pairs}_bg_key"] in tested]
        return rows

    def shown_images(self, dataset: Dataset) -> dict[str, int]:
        """Chooses the images to draw maps of; reads the index only once for all models.

        Returns key -> number of its output shard, in order of labels. Raises UsageError without
        images to test on.
        """
        split, of = self.evaluation.split, dataset.manifest.fingerprint
        if of not in self._shown:
            rows = self.rows(dataset)
            if not rows:
                raise UsageError(
                    f"the dataset has no images in {split}: there is nothing to explain"
                )
            keys, labels = zip(*((row["key"], row["label"]) for row in rows), strict=True)
            chosen = sample_evenly(
                keys, np.asarray(labels, np.int64), self.num_maps, seed=0, purpose="saliency"
            )
            by_class = sorted(itertools.compress(zip(labels, keys, strict=True), chosen))
            self._shown = {of: {key: dataset.shard_of(split, key) for _, key in by_class}}
        return self._shown[of]

    @override
    def size(self, dataset: Dataset, chunk: int) -> int:
        if self.evaluation.holdout:
            return len(self.rows(dataset, chunk))
        files = dataset.shard_files(self.evaluation.split, chunk, (self.variant,))
        return sum(file.samples or 0 for file in files)

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> SaliencyShards:
        return SaliencyShards(dataset.store, dataset, run, self)

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        store, model_work = dataset.store, self.for_model(dataset, run)
        paths = [model_work.path(chunk) for chunk in self.chunks(dataset)]
        split, variant = self.evaluation.split, self.variant
        images = EvalImages.read(dataset, split)
        unit_of = dict(zip(images.keys.to_pylist(), images.units, strict=True))
        content = pick(
            SaliencyResult,
            measure_mass(store, paths, unit_of),
            run,
            of=split_fingerprint(dataset, split, (variant, MASK)),
            method=METHOD,
            variant=str(variant),
            maps=map_rows(store, paths, list(self.shown_images(dataset)), run.folder),
        )
        write_result(store, result_file(run.folder, "saliency"), content)
        stored = store.walk(f"results/{run.folder}/saliency")
        store.delete_all(set(stored).difference(paths, (row.file for row in content.maps)))


_Triple = tuple[Sample, Pixels, Mask]
"""A picture and its mask, decoded."""


@dataclasses.dataclass(eq=False)
class SaliencyShards(AnalysisOfModel):
    """Measures of a model's saliency on output shards, and maps of some images."""

    dataset: Dataset
    model: ModelRun
    plan: PlannedSaliency

    @override
    def path(self, chunk: int) -> str:
        return result_shard(self.model.folder, "saliency", self.plan.evaluation.split, chunk)

    @functools.cached_property
    def _tested_keys(self) -> list[str]:
        """Sorted keys of the tested images of all shards."""
        # Cached, because the fingerprint of every shard includes all these keys, and collecting
        # them reads the whole index.
        return sorted(row["key"] for row in self.plan.rows(self.dataset))

    @override
    def fingerprint(self, chunk: int) -> str:
        """Leaves out the choice of images to draw."""
        evaluation, variant = self.plan.evaluation, self.plan.variant
        files = self.dataset.shard_files(evaluation.split, chunk, (variant, MASK))
        return fingerprint(
            *self.model.identity,
            evaluation.predict.identity,
            str(variant),
            SALIENCY_VERSION,
            [file.sha256 for file in files],
            *([self._tested_keys] if evaluation.holdout else []),
            *self.dataset.custom_taxonomy,
        )

    @override
    def is_done(self, chunk: int) -> bool:
        """Also asks for the maps of the shard's images."""
        return super().is_done(chunk) and not self._missing_maps(chunk)

    def _missing_maps(self, shard: int) -> frozenset[str]:
        """Returns the keys of the shard's images whose maps are missing."""
        expected_fingerprint = self.fingerprint(shard)
        return frozenset(
            key
            for key, number in self.plan.shown_images(self.dataset).items()
            if number == shard
            and not has_map(self.store, map_path(self.model.folder, key), expected_fingerprint)
        )

    @override
    def run(
        self, predictor: Predictor, chunks: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[ChunkOutput, None, None]:
        """Also raises ModelError if the model gives no gradients."""
        for shard in missing:
            # If the shard's measures exist, only maps are missing.
            keys = self._missing_maps(shard) if super().is_done(shard) else None
            rows = list(self._explain(predictor, shard, keys, note))
            if keys is None:
                yield ChunkOutput(shard, pa.Table.from_pylist(rows, SALIENCY_SCHEMA))

    def _explain(
        self, predictor: Predictor, shard: int, keys: frozenset[str] | None, note: NoteDone
    ) -> Iterator[dict[str, object]]:
        """Writes a shard's missing maps; yields measures of its images, or of `keys` alone."""
        # Imported here, so that only machines that compute saliency wait for torch.
        import torch

        from pipeline.analyses.saliency.gradients import Explained
        from pipeline.models.predict import lagging

        missing, expected_fingerprint = self._missing_maps(shard), self.fingerprint(shard)
        output_labels = labels_of_outputs(self.model.num_outputs, self.dataset.taxonomy)
        split = self.plan.evaluation.split
        pictures = self.dataset.samples(split, shard, self.plan.variant)
        masks = self.dataset.samples(split, shard, MASK)
        if keys is None:
            keys = frozenset(row["key"] for row in self.plan.rows(self.dataset, shard))
        pairs = (pair for pair in zip(pictures, masks, strict=True) if pair[0].key in keys)
        size = max(1, predictor.batch_size // BATCH_DIVISOR)

        def decode(pair: tuple[Sample, Sample]) -> _Triple:
            return pair[0], decode_image(pair[0].image), decode_mask(pair[1].image)

        def launch(batch: list[_Triple]) -> tuple[list[_Triple], Explained]:
            _, pictures, masks = zip(*batch, strict=True)
            return batch, Explained(predictor, np.stack(pictures), np.stack(masks), size)

        # A device works meanwhile; a CPU does not, as in `pipeline.models.predict`.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            batches = iter(lambda: list(pool.map(decode, itertools.islice(pairs, size))), [])
            for batch, explained in lagging(map(launch, batches), predictor.device):
                outputs, masses = explained.outputs(), explained.masses()
                for i, (sample, picture, mask) in enumerate(batch):
                    if sample.key in missing:
                        drawn = overlay(picture, explained.map_of(i), mask)
                        path = map_path(self.model.folder, sample.key)
                        write_map(self.store, path, drawn, expected_fingerprint)
                    yield {
                        "key": sample.key,
                        "label": sample.fields["label"],
                        "prediction": int(output_labels[outputs[i]]),
                        "output": int(outputs[i]),
                        "mass_in_mask": masses[i],
                        "mask_area": float(mask.mean()),
                    }
                note(shard, len(batch), len(batch))
