"""Saliency: how much of a model's gradient lies on the foreground, on (model, output shard).

    dataset -> groups of shards -> Explain (one model at a time) -> Measure

Numbers of a (model, shard) are one file, keyed by weights, pixels and what is done with them:
what is there for the same key is not computed again.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import torch

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import ShardFiles, read_about, with_labels, write_table
from pipeline.dataset.sinks import Sample
from pipeline.evaluate.gather import ModelShard, write_models
from pipeline.evaluate.plan import model_identity
from pipeline.evaluate.predict import Predictor
from pipeline.evaluate.resident import each_model
from pipeline.evaluate.stage import ShardGroups
from pipeline.memory import keep_freed_memory
from pipeline.models import LoadedModel
from pipeline.results.answers import Images
from pipeline.results.failures import FailedModel
from pipeline.results.files import result_file, result_folder, write_result
from pipeline.runner.counters import count, count_written, timed
from pipeline.saliency.gradients import answer_gradients
from pipeline.saliency.plan import SaliencyPlan, shown_images
from pipeline.saliency.results import (
    SALIENCY_SCHEMA,
    has_picture,
    measure,
    number,
    saliency_picture,
    shown_rows,
    write_picture,
    write_saliency_table,
)
from pipeline.saliency.shards import SaliencyShards
from pipeline.storage.lock import TABLES_LOCK, held, model_lock
from transforms.codec import decode_image, decode_mask
from transforms.saliency import mass_in_mask, overlay, saliency_map
from transforms.scoring import labels_of_outputs
from transforms.taxonomy import Taxonomy

_ACTIVATIONS = 4
"""Batches are smaller by this factor: a backward pass needs all activations."""


class Explain(beam.DoFn):
    """(group, its shards) -> ModelShards, or a FailedModel, model after model."""

    def __init__(self, plan: SaliencyPlan, taxonomy: Taxonomy) -> None:
        self._plan = plan
        self._taxonomy = taxonomy

    def setup(self) -> None:
        keep_freed_memory()

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[ModelShard | FailedModel]:
        group, numbers = element[0], sorted(element[1])
        evaluation, progress = self._plan.evaluation, self._plan.evaluation.progress
        dataset = Dataset.open(evaluation.store)
        shown = shown_images(dataset, self._plan)
        images = {shard: self._images(dataset, shard) for shard in numbers}
        total = sum(images.values())

        def explain(order: int, model: LoadedModel, predictor: Predictor) -> Iterator[ModelShard]:
            about = model_identity(model, evaluation, dataset)
            folder = result_folder(model.name, about["evaluation"])
            shards = SaliencyShards(dataset, self._plan, model, folder)
            text = json.dumps(about, sort_keys=True)
            with held(evaluation.store, model_lock(folder, group)):
                for shard in numbers:
                    keys = [key for key, place in shown.items() if place == shard]
                    with timed("saliency"):
                        path = self._explain(shards, predictor, shard, keys)
                    progress.note_done("saliency", f"{order}-{shard:05d}", images[shard])
                    yield ModelShard(order, shard, text, path)

        for result in each_model(
            evaluation, self._taxonomy, explain, stage="saliency", group=group, total=total
        ):
            yield result
            if isinstance(result, FailedModel):
                progress.note_total("saliency", f"{result.order}-{group}-failed", -total)

    def _images(self, dataset: Dataset, shard: int) -> int:
        files = dataset.shard_files(self._plan.evaluation.split, shard, (self._plan.variant,))
        return sum(file.samples or 0 for file in files)

    def _explain(
        self, shards: SaliencyShards, predictor: Predictor, shard: int, keys: Sequence[str]
    ) -> str:
        """Makes what is missing of a shard: its numbers, and the maps of the keys."""
        store, path, checksum = shards.dataset.store, shards.path(shard), shards.checksum(shard)
        missing = {
            key
            for key in keys
            if not has_picture(store, saliency_picture(shards.folder, key), checksum)
        }
        there = read_about(store, path)
        is_there = there is not None and there.fingerprint == checksum
        if is_there:
            count("saliency_shards_kept")
            if not missing:
                return path
        samples = shards.samples(shard)
        if is_there:
            samples = ((picture, mask) for picture, mask in samples if picture.key in missing)
        output_labels = labels_of_outputs(shards.model.num_outputs, self._taxonomy)
        rows = []
        size = max(1, self._plan.evaluation.predict.batch_size // _ACTIVATIONS)
        while batch := list(itertools.islice(samples, size)):
            pictures = np.stack([decode_image(picture.image) for picture, _ in batch])
            masks = [decode_mask(mask.image) for _, mask in batch]
            logits, gradients = self._gradients(predictor, pictures, batch)
            for i, (picture, _) in enumerate(batch):
                saliency = saliency_map(gradients[i])
                if picture.key in missing:
                    shown = overlay(pictures[i], saliency, masks[i])
                    file = saliency_picture(shards.folder, picture.key)
                    write_picture(store, file, shown, checksum)
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
            table = pa.Table.from_pylist(
                rows, with_labels(SALIENCY_SCHEMA, self._taxonomy.num_labels)
            )
            count_written([write_table(store, path, table, ShardFiles(checksum, ()))])
            count("saliency_shards_made")
        return path

    def _gradients(
        self,
        predictor: Predictor,
        pictures: np.ndarray[Any, np.dtype[np.uint8]],
        batch: Sequence[tuple[Sample, Sample]],
    ) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]]]:
        tensor = torch.from_numpy(pictures).to(predictor.device).permute(0, 3, 1, 2).float() / 255
        keys = [picture.key for picture, _ in batch]
        return answer_gradients(predictor, tensor, keys, self._plan.smoothgrad)


class Measure(beam.DoFn):
    """(None, all of Explain's results as a side input) -> dataset fingerprint, once.

    Writes what is said of each model, and the table of all models.
    """

    def __init__(self, plan: SaliencyPlan) -> None:
        self._plan = plan

    def process(self, dataset: str, explained: Iterable[ModelShard | FailedModel]) -> Iterator[str]:
        with timed("saliency"):
            self._measure(dataset, explained)
        yield dataset

    def _measure(self, dataset: str, explained: Iterable[ModelShard | FailedModel]) -> None:
        evaluation = self._plan.evaluation
        store = evaluation.store
        opened = Dataset.open(store)
        shown = list(shown_images(opened, self._plan))
        write_models(
            evaluation,
            opened,
            explained,
            functools.partial(self._write, opened, shown),
            expected=opened.shards(evaluation.split),
            what="saliency of {} of {} shards",
            stage="saliency",
        )
        with held(store, TABLES_LOCK, wait=60):
            write_saliency_table(store, dataset)
        store.remove_temporary()

    def _write(self, dataset: Dataset, shown: list[str], found: list[ModelShard]) -> None:
        """Writes a model's saliency.json, and removes what it does not tell of."""
        store, about = dataset.store, json.loads(found[0].about)
        folder = result_folder(about["model"], about["evaluation"])
        paths = [result.path for result in found]
        images = Images.read(dataset, self._plan.evaluation.split)
        unit_of = dict(zip(images.keys.to_pylist(), images.units, strict=True))
        content = {
            **about,
            "dataset": dataset.manifest.fingerprint,
            "method": self._plan.method,
            "variant": self._plan.variant,
            **measure(store, paths, unit_of),
            "maps": shown_rows(store, paths, shown, folder),
        }
        write_result(store, result_file(folder, "saliency"), content)
        current = {*paths, *(row["file"] for row in content["maps"])}
        for path in list(store.walk(f"results/{folder}/saliency")):
            if path not in current:
                store.delete(path)


class Saliency(beam.PTransform):
    """Explains models on a finished dataset: its fingerprint -> the same, one element."""

    def __init__(self, plan: SaliencyPlan, taxonomy: Taxonomy) -> None:
        super().__init__()
        self._plan = plan
        self._taxonomy = taxonomy

    def expand(self, dataset: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        explain = beam.ParDo(Explain(self._plan, self._taxonomy)).with_output_types(
            ModelShard | FailedModel
        )
        explained = (
            dataset
            | "Shards"
            >> beam.ParDo(ShardGroups(self._plan.evaluation)).with_output_types(tuple[int, int])
            | "GatherGroup" >> beam.GroupByKey()
            | "Explain" >> self._plan.evaluation.on_workers(explain)
        )
        return dataset | "Measure" >> beam.ParDo(
            Measure(self._plan), explained=beam.pvalue.AsList(explained)
        ).with_output_types(str)
