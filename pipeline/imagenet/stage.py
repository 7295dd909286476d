"""ImageNetAccuracy: top-1 accuracy of models over all classes of ImageNet.

    dataset -> groups of shards of ImageNet images -> Classify (one model at a time) -> Score

A model sees these images through its own whole preprocessing, as published figures do.
Predictions of a (model, shard) are one file, keyed by weights, images and evaluation
configuration: what is there for the same key is not computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.fingerprints import EVALUATE_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import ShardFiles, read_about, write_table
from pipeline.dataset.sinks import Sample
from pipeline.errors import JobError
from pipeline.evaluate.gather import ModelShard, all_shards, sort_results
from pipeline.evaluate.plan import Evaluation, model_identity
from pipeline.evaluate.predict import BrokenPictureError, Predictor
from pipeline.evaluate.resident import each_model
from pipeline.imagenet.folder import ImageNetImage, ImageNetListing, list_imagenet, listing_digest
from pipeline.imagenet.results import PREDICTION_SCHEMA
from pipeline.memory import keep_freed_memory
from pipeline.models import LoadedModel
from pipeline.results.failures import FailedModel, note_failures
from pipeline.results.files import (
    read_summaries,
    result_file,
    result_folder,
    result_shard,
    write_result,
)
from pipeline.results.trend import write_trend
from pipeline.runner.counters import count, count_written, timed
from pipeline.storage.files import files_of
from pipeline.storage.lock import TABLES_LOCK, held, model_lock
from pipeline.storage.store import Store
from transforms.intervals import wilson
from transforms.taxonomy import Taxonomy

_LIBRARIES = ("numpy", "pillow", "torch", "timm")


class ImageNetShards(beam.DoFn):
    """Dataset fingerprint -> (group, shard of ImageNet images)."""

    def __init__(self, evaluation: Evaluation, root: str, taxonomy: Taxonomy) -> None:
        self._evaluation = evaluation
        self._root = root
        self._taxonomy = taxonomy

    def process(self, _: str) -> Iterator[tuple[int, int]]:
        for shard in range(len(list_imagenet(self._root, self._taxonomy).shards())):
            yield shard % self._evaluation.groups, shard


class Classify(beam.DoFn):
    """(group, its shards) -> ModelShards, or a FailedModel, model after model.

    Models whose outputs are not the classes of ImageNet are passed over.
    """

    def __init__(self, evaluation: Evaluation, root: str, taxonomy: Taxonomy) -> None:
        self._evaluation = evaluation
        self._native = dataclasses.replace(
            evaluation, predict=dataclasses.replace(evaluation.predict, eval_input="native")
        )
        self._root = root
        self._taxonomy = taxonomy

    def setup(self) -> None:
        keep_freed_memory()

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[ModelShard | FailedModel]:
        group, numbers = element[0], sorted(element[1])
        evaluation, progress = self._evaluation, self._evaluation.progress
        dataset = Dataset.open(evaluation.store)
        listed = list_imagenet(self._root, self._taxonomy).shards()
        shards = {number: listed[number] for number in numbers}
        total = sum(len(images) for images in shards.values())

        def classify(order: int, model: LoadedModel, predictor: Predictor) -> Iterator[ModelShard]:
            if model.num_outputs != len(self._taxonomy.wnids):
                progress.note_total("imagenet", f"{order}-{group}-none", -total)
                return
            # How the model is run here; its folder is the one of its other results.
            about = model_identity(model, self._native, dataset)
            how = model_identity(model, evaluation, dataset)["evaluation"]
            about["folder"] = result_folder(model.name, how)
            text = json.dumps(about, sort_keys=True)
            with held(evaluation.store, model_lock(about["folder"], group)):
                for shard, images in shards.items():
                    with timed("imagenet"):
                        path = self._classify(about, model, predictor, shard, images)
                    progress.note_done("imagenet", f"{order}-{shard:05d}", len(images))
                    yield ModelShard(order, shard, text, path)

        for result in each_model(
            self._native, self._taxonomy, classify, stage="imagenet", group=group, total=total
        ):
            yield result
            if isinstance(result, FailedModel):
                progress.note_total("imagenet", f"{result.order}-{group}-failed", -total)

    def _classify(
        self,
        about: dict[str, Any],
        model: LoadedModel,
        predictor: Predictor,
        shard: int,
        images: tuple[ImageNetImage, ...],
    ) -> str:
        store = self._evaluation.store
        path = result_shard(about["folder"], "imagenet", "val", shard)
        checksum = fingerprint(
            model.name,
            model.weights_sha256,
            about["preprocessing"],
            about["evaluation"],
            EVALUATE_VERSION,
            listing_digest(images),
        )
        there = read_about(store, path)
        if there is not None and there.fingerprint == checksum:
            count("imagenet_shards_kept")
            return path
        rows = []
        try:
            with contextlib.closing(predictor.logits(_samples(images))) as batches:
                for batch, logits in batches:
                    for sample, output in zip(batch, logits.argmax(axis=1).tolist(), strict=True):
                        label = sample.fields["index"]
                        rows.append({"name": sample.key, "label": label, "prediction": output})
                    count("imagenet_images", len(batch))
        except BrokenPictureError as error:
            raise JobError(
                f"{error.key} of --imagenet {self._root} cannot be decoded; put a whole copy "
                "in its place"
            ) from error
        table = pa.Table.from_pylist(rows, PREDICTION_SCHEMA)
        count_written([write_table(store, path, table, ShardFiles(checksum, ()))])
        count("imagenet_shards_made")
        return path


def _samples(images: Iterable[ImageNetImage]) -> Iterator[Sample]:
    for image in images:
        data = files_of(image.path).read(image.path)
        yield Sample(image.name, data, "", {"index": image.index})


class Score(beam.DoFn):
    """(None, all of Classify's results as a side input) -> dataset fingerprint, once.

    Writes each model's accuracy, and the trend over all models.
    """

    def __init__(self, evaluation: Evaluation, root: str, taxonomy: Taxonomy) -> None:
        self._evaluation = evaluation
        self._root = root
        self._taxonomy = taxonomy

    def process(
        self, dataset: str, classified: Iterable[ModelShard | FailedModel]
    ) -> Iterator[str]:
        with timed("imagenet"):
            self._score(dataset, classified)
        yield dataset

    def _score(self, dataset: str, classified: Iterable[ModelShard | FailedModel]) -> None:
        store = self._evaluation.store
        listing = list_imagenet(self._root, self._taxonomy)
        expected = range(len(listing.shards()))
        by_model, failed = sort_results(classified)
        # Models of other classes, which are passed over, have not failed either.
        succeeded = [e for order, e in enumerate(self._evaluation.models) if order not in failed]
        for order, results in by_model.items():
            entry = self._evaluation.models[order]
            shards = all_shards(
                entry, results, expected, "predictions of {} of {} shards of ImageNet"
            )
            folder, accuracy = _accuracy(store, shards, listing)
            write_result(store, result_file(folder, "imagenet"), accuracy)
            succeeded.append(accuracy["model"])
            current = {result.path for result in shards}
            for path in list(store.walk(f"results/{folder}/imagenet")):
                if path not in current:
                    store.delete(path)
        how = self._evaluation.how
        note_failures(store, dataset, "imagenet", how, failed.values(), succeeded)
        with held(store, TABLES_LOCK, wait=60):
            write_trend(store, dataset, read_summaries(store, dataset)[0], self._taxonomy)
        store.remove_temporary()


def _accuracy(
    store: Store, shards: list[ModelShard], listing: ImageNetListing
) -> tuple[str, dict[str, Any]]:
    """A model's folder, and what its imagenet.json says."""
    about = json.loads(shards[0].about)
    folder = str(about.pop("folder"))
    tables = [pq.read_table(store.arrow_source(shard.path)) for shard in shards]
    predictions = pa.concat_tables(tables)
    labels, outputs = (predictions[name].to_numpy() for name in ("label", "prediction"))
    n, correct = len(labels), int((labels == outputs).sum())
    low, high = wilson(correct, n)
    return folder, {
        **about,
        "listing": listing.digest,
        "n": n,
        "classes": listing.classes,
        "unknown": listing.unknown,
        "correct": correct,
        "top1": correct / n,
        "ci_low": low,
        "ci_high": high,
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
    }


class ImageNetAccuracy(beam.PTransform):
    """Measures models on ImageNet: dataset fingerprint -> the same, one element."""

    def __init__(self, evaluation: Evaluation, root: str, taxonomy: Taxonomy) -> None:
        super().__init__()
        self._arguments = (evaluation, root, taxonomy)

    def expand(self, dataset: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        classify = beam.ParDo(Classify(*self._arguments)).with_output_types(
            ModelShard | FailedModel
        )
        classified = (
            dataset
            | "Shards"
            >> beam.ParDo(ImageNetShards(*self._arguments)).with_output_types(tuple[int, int])
            | "GatherGroup" >> beam.GroupByKey()
            | "Classify" >> self._arguments[0].on_workers(classify)
        )
        return dataset | "Score" >> beam.ParDo(
            Score(*self._arguments), classified=beam.pvalue.AsList(classified)
        ).with_output_types(str)
