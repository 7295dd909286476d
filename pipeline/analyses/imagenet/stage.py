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
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipeline.analyses.imagenet.folder import (
    ImageNetImage,
    ImageNetListing,
    list_imagenet,
    listing_digest,
)
from pipeline.analyses.imagenet.results import PREDICTION_SCHEMA
from pipeline.dataset.fingerprints import EVALUATE_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import ShardFiles, read_about, write_table
from pipeline.dataset.sinks import Sample
from pipeline.errors import JobError
from pipeline.evaluate.failures import FailedModel, note_failures
from pipeline.evaluate.gather import ModelShard, all_shards, sort_results
from pipeline.evaluate.plan import Evaluation, model_identity
from pipeline.evaluate.results import (
    result_file,
    result_folder,
    result_shard,
    write_result,
)
from pipeline.evaluate.work import Begun, Left, Work, run_models
from pipeline.models import LoadedModel
from pipeline.models.predict import BrokenPictureError, Predictor
from pipeline.runtime.counters import count, count_written, timed
from pipeline.runtime.lock import held, model_lock
from pipeline.storage.files import files_of
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.intervals import wilson
from transforms.taxonomy import Taxonomy

_LIBRARIES = ("numpy", "pillow", "torch", "timm")


class Classify(Work):
    """Predictions of shards of ImageNet images.

    Models whose outputs are not the classes of ImageNet are passed over.
    """

    stage = "imagenet"
    refuses_overlap = False

    def __init__(self, evaluation: Evaluation, root: str, taxonomy: Taxonomy) -> None:
        native = dataclasses.replace(evaluation.predict, eval_input="native")
        super().__init__(dataclasses.replace(evaluation, predict=native), taxonomy)
        self._others = evaluation
        self._root = root

    def units(self, dataset: Dataset) -> Iterable[int]:
        return range(len(list_imagenet(self._root, self.taxonomy).shards()))

    def begin(self, dataset: Dataset, group: int, units: Sequence[int]) -> Begun:
        listed = list_imagenet(self._root, self.taxonomy).shards()

        def classify(
            order: int, model: LoadedModel, predictor: Predictor | None, shards: Sequence[int]
        ) -> Iterator[ModelShard | Left]:
            if model.num_outputs != len(self.taxonomy.wnids):
                return
            # How the model is run here; its folder is the one of its other results.
            about = model_identity(model, self.evaluation, dataset)
            how = model_identity(model, self._others, dataset)["evaluation"]
            about["folder"] = result_folder(model.name, how)
            text = json.dumps(about, sort_keys=True)
            with held(self.evaluation.store, model_lock(about["folder"], group)):
                for shard in shards:
                    with timed("imagenet"):
                        path = self._classify(about, model, predictor, shard, listed[shard])
                    yield ModelShard(order, shard, text, path) if path else Left(order, shard)

        return Begun({unit: len(listed[unit]) for unit in units}, classify)

    def _classify(
        self,
        about: dict[str, Any],
        model: LoadedModel,
        predictor: Predictor | None,
        shard: int,
        images: tuple[ImageNetImage, ...],
    ) -> str | None:
        """The path of a shard's predictions; None if they are not there, and there is no device
        to make them on."""
        store = self.evaluation.store
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
        if predictor is None:
            return None
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

    Writes each model's accuracy.
    """

    def __init__(self, evaluation: Evaluation, root: str, taxonomy: Taxonomy) -> None:
        self._evaluation = evaluation
        self._root = root
        self._taxonomy = taxonomy

    @timed("imagenet")
    def process(self, dataset: str, classified: Iterable[ModelShard | FailedModel]) -> list[str]:
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
        store.remove_temporary()
        return [dataset]


def _accuracy(
    store: Store, shards: list[ModelShard], listing: ImageNetListing
) -> tuple[str, dict[str, Any]]:
    """A model's folder, and what its imagenet.json says."""
    about = json.loads(shards[0].about)
    folder = str(about.pop("folder"))
    tables = [read_table(store, shard.path) for shard in shards]
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
        classified = run_models(dataset, Classify(*self._arguments), "Classify")
        return dataset | "Score" >> beam.ParDo(
            Score(*self._arguments), classified=beam.pvalue.AsList(classified)
        ).with_output_types(str)
