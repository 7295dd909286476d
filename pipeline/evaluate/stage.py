"""Evaluate: the inference stage, on (model, output shard).

    dataset -> groups of shards -> Predict (one model at a time) -> Summarise

Predictions of a (model, shard) are one file, keyed by weights, pixels and evaluation
configuration: what is there for the same key is not computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import torch

from pipeline.dataset.config import EVALUATE_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import ShardFiles, read_about, with_labels, write_table
from pipeline.dataset.sinks import Sample
from pipeline.errors import JobError, ModelError
from pipeline.evaluate.predict import PredictConfig, Predictor
from pipeline.evaluate.resident import free_memory, load_resident
from pipeline.memory import keep_freed_memory
from pipeline.models import LoadedModel
from pipeline.results.analysis import summarise
from pipeline.results.answers import Images
from pipeline.results.failures import FailedModel, forget_failure, note_failure, sort_results
from pipeline.results.files import (
    PREDICTION_SCHEMA,
    predictions_file,
    read_predictions,
    result_folder,
    summary_file,
)
from pipeline.results.logits import PROBED, LogitsKeeper, batches_with, keys_to_keep, logits_file
from pipeline.results.power import power_of
from pipeline.results.tables import write_tables
from pipeline.runner.counters import count, count_written, timed
from pipeline.runner.progress import Progress
from pipeline.runner.run import usable_cores
from pipeline.storage.lock import TABLES_LOCK, held, model_lock
from pipeline.storage.store import Store
from pipeline.training.leakage import Test, refuse_overlap, training_note
from pipeline.training.parts import Holdout, keys_for_test
from transforms.scoring import LABEL_RULES, labels_of_outputs
from transforms.taxonomy import Taxonomy
from transforms.variants import is_picture

_LIBRARIES = ("numpy", "torch", "timm")
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to evaluate, and how.

    Attributes:
      store: the dataset folder.
      models: entries of `--models`, in order.
      split: the split to evaluate on.
      predict: how.
      progress: where workers note what is done.
      accept_new_weights: take weights that differ from those behind earlier results.
      weights: folder of `in9 models fetch` that weights are taken from, if any.
      groups: in how many groups the shards are evaluated at the same time; each holds one
        model at a time, so one for each device.
      hints: resource hints of the steps that run models, as (name, value).
      spread: whether groups are on machines of their own, so that each may use all cores.
      holdout: share of the images that is tested on, as training with it leaves them out; 0 for
        all images.
      allow_overlap: whether images may be tested on that a model was trained on.
    """

    store: Store
    models: tuple[str, ...]
    split: str
    predict: PredictConfig
    progress: Progress
    accept_new_weights: bool = False
    weights: str | None = None
    groups: int = 1
    hints: tuple[tuple[str, str], ...] = ()
    spread: bool = False
    holdout: float = 0.0
    allow_overlap: bool = False

    @property
    def threads(self) -> int:
        """Threads of a group: how many cores of this machine are its own."""
        return max(1, usable_cores() // (1 if self.spread else self.groups))

    @property
    def how(self) -> dict[str, Any]:
        """How models are run, by flag name: tells two runs of a model apart."""
        predict = dataclasses.asdict(self.predict)
        return {"split": self.split, "holdout": self.holdout, **predict}

    def test_on(self, dataset: Dataset) -> Test:
        """What models are tested on, of the dataset as it is."""
        return Test(dataset, self.split, self.holdout, self.allow_overlap)

    def keys(self, dataset: Dataset) -> frozenset[str] | None:
        """The images that are tested on, None for all of them."""
        if not self.holdout:
            return None
        return keys_for_test(dataset, self.split, Holdout(self.holdout))

    def keys_of_shard(self, dataset: Dataset, shard: int) -> frozenset[str] | None:
        """Those of an output shard."""
        if not self.holdout:
            return None
        rows = [row for row in dataset.index_of_shard(self.split, shard) if row["selected"]]
        return Holdout(self.holdout).keys_for_test(rows)

    def on_workers(self, step: beam.PTransform) -> beam.PTransform:
        """Puts a step that runs models on the machines that are meant for it."""
        return step.with_resource_hints(**dict(self.hints)) if self.hints else step


@dataclasses.dataclass(frozen=True)
class EvaluatedShard:
    """Predictions that are up to date: identity of the model, and the file's path."""

    order: int
    shard: int
    about: str
    path: str


class ShardGroups(beam.DoFn):
    """Dataset fingerprint -> (group, output shard)."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation

    def process(self, _: str) -> Iterator[tuple[int, int]]:
        dataset = Dataset.open(self._evaluation.store)
        for shard in dataset.shards(self._evaluation.split):
            yield shard % self._evaluation.groups, shard


class Predict(beam.DoFn):
    """(group, its shards) -> EvaluatedShards, or a FailedModel, model after model."""

    def __init__(self, evaluation: Evaluation, taxonomy: Taxonomy) -> None:
        self._evaluation = evaluation
        self._taxonomy = taxonomy

    def setup(self) -> None:
        keep_freed_memory()

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[EvaluatedShard | FailedModel]:
        group, shards = element[0], sorted(element[1])
        progress = self._evaluation.progress
        dataset = Dataset.open(self._evaluation.store)
        pictures = {shard: dataset.pictures(self._evaluation.split, shard) for shard in shards}
        for order in range(len(self._evaluation.models)):
            progress.note_total("evaluate", f"{order}-{group}", sum(pictures.values()))
        torch.set_num_threads(self._evaluation.threads)
        for order, spec in enumerate(self._evaluation.models):
            name = spec
            try:
                with timed("evaluate"):
                    refuse_overlap(spec, self._evaluation.test_on(dataset))
                    model, predictor = load_resident(spec, self._evaluation, self._taxonomy)
                name = model.name
                yield from self._evaluate(dataset, order, model, predictor, group, pictures)
            except ModelError as error:
                _LOG.warning("%s failed", name, exc_info=True)
                yield FailedModel(order, spec, name, " ".join(str(error).split()))
                for shard in shards:
                    progress.note_done("evaluate", f"{order}-{shard:05d}", pictures[shard])
            model = predictor = None  # type: ignore[assignment]
            free_memory()

    def _evaluate(
        self,
        dataset: Dataset,
        order: int,
        model: LoadedModel,
        predictor: Predictor,
        group: int,
        pictures: dict[int, int],
    ) -> Iterator[EvaluatedShard]:
        """One model on the shards, which `pictures` gives with their numbers of pictures."""
        store = self._evaluation.store
        about = model_identity(model, self._evaluation, dataset)
        folder = result_folder(model.name, self._evaluation.how)
        with held(store, model_lock(folder, group)):
            for shard in pictures:
                with timed("evaluate"):
                    path = self._predict(dataset, model, predictor, shard)
                self._evaluation.progress.note_done(
                    "evaluate", f"{order}-{shard:05d}", pictures[shard]
                )
                yield EvaluatedShard(order, shard, json.dumps(about, sort_keys=True), path)

    def _predict(
        self, dataset: Dataset, model: LoadedModel, predictor: Predictor, shard: int
    ) -> str:
        evaluation = self._evaluation
        path, checksum, is_there = find_predictions(evaluation, dataset, model, shard)
        logits_path = logits_file(
            result_folder(model.name, evaluation.how), evaluation.split, shard
        )
        about = read_about(evaluation.store, logits_path)
        missing = about is None or about.fingerprint != checksum
        tested = evaluation.keys_of_shard(dataset, shard)
        keeper = LogitsKeeper(
            keys_to_keep(dataset, evaluation.split, shard, tested) if missing else frozenset()
        )
        if is_there and not keeper.keys:
            count("prediction_shards_kept")
            return path
        samples = _samples(dataset, evaluation.split, shard, tested)
        if is_there:
            # Of an earlier release, or lost: scores depend on what shares a batch in their last
            # digits, so batches stay what they were.
            samples = batches_with(samples, evaluation.predict.batch_size, PROBED, keeper.keys)

        output_labels = labels_of_outputs(model.num_outputs, self._taxonomy)
        schema = with_labels(PREDICTION_SCHEMA, self._taxonomy.num_labels)
        tables = [schema.empty_table()]
        with contextlib.closing(predictor.logits(samples)) as batches:
            for batch, logits in batches:
                keeper.add(batch, logits)
                if not is_there:
                    tables.append(
                        _prediction_table(model.name, batch, logits, output_labels, schema)
                    )
                count("pictures_predicted", len(batch))
        about = ShardFiles(checksum, ())
        if keeper.keys:
            count_written([write_table(evaluation.store, logits_path, keeper.table(), about)])
            count("logit_shards_made")
        if not is_there:
            table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
            count_written([write_table(evaluation.store, path, table, about)])
            count("prediction_shards_made")
        return path


def _samples(
    dataset: Dataset, split: str, shard: int, tested: frozenset[str] | None
) -> Iterator[Sample]:
    """Samples of all variants of a shard that are tested on, with their variant as a field."""
    for variant in _pictures(dataset):
        for sample in dataset.samples(split, shard, variant):
            if tested is not None and sample.key not in tested:
                continue
            yield dataclasses.replace(sample, fields={**sample.fields, "variant": variant})


def _pictures(dataset: Dataset) -> tuple[str, ...]:
    """The variants that models are evaluated on."""
    return tuple(name for name in dataset.variants if is_picture(name))


def find_predictions(
    evaluation: Evaluation, dataset: Dataset, model: LoadedModel, shard: int
) -> tuple[str, str, bool]:
    """Where the predictions of a (model, shard) lie, their fingerprint, and whether they are
    there already."""
    folder = result_folder(model.name, evaluation.how)
    path = predictions_file(folder, evaluation.split, shard)
    tested = evaluation.keys_of_shard(dataset, shard)
    files = dataset.shard_files(evaluation.split, shard, _pictures(dataset))
    checksum = fingerprint(
        model.name,
        model.weights_sha256,
        dataclasses.asdict(model.preprocessing),
        dataclasses.asdict(evaluation.predict),
        EVALUATE_VERSION,
        [file.sha256 for file in files],
        # Groups may change where pictures do not.
        *([sorted(tested)] if tested is not None else []),
        *dataset.own_taxonomy,
    )
    about = read_about(evaluation.store, path)
    return path, checksum, about is not None and about.fingerprint == checksum


def _prediction_table(
    model: str,
    batch: list[Sample],
    logits: np.ndarray[Any, np.dtype[np.float32]],
    output_labels: np.ndarray[Any, np.dtype[np.int64]],
    schema: pa.Schema,
) -> pa.Table:
    labels = np.asarray([sample.fields["label"] for sample in batch], np.int64)
    tables = []
    for rule, score in LABEL_RULES.items():
        scores = score(logits, labels, output_labels)
        columns = {
            "model": [model] * len(batch),
            "label_rule": [rule] * len(batch),
            "variant": [sample.fields["variant"] for sample in batch],
            "key": [sample.key for sample in batch],
            "fg_key": [sample.fields["fg_key"] for sample in batch],
            "bg_key": [sample.fields["bg_key"] for sample in batch],
            "label": labels,
            "prediction": scores.prediction,
            "output": scores.output,
            "correct": scores.prediction == labels,
            "top1_score": scores.top1,
            "true_score": scores.true,
        }
        arrays = [pa.array(columns[f.name]).cast(f.type) for f in schema]
        tables.append(pa.Table.from_arrays(arrays, schema=schema))
    return pa.concat_tables(tables)


def model_identity(model: LoadedModel, evaluation: Evaluation, dataset: Dataset) -> dict[str, Any]:
    """What a summary says of a model and of how it was run."""
    preprocessing = dataclasses.asdict(model.preprocessing)
    stored = dataset.manifest.config.segment.image_size
    fixed = model.preprocessing.fixed_size or evaluation.predict.eval_input == "native"
    return {
        "model": model.name,
        "architecture": model.architecture,
        "weights": model.weights,
        "weights_sha256": model.weights_sha256,
        "preprocessing": preprocessing,
        "num_outputs": model.num_outputs,
        "evaluation": {
            **evaluation.how,
            "input_size": model.preprocessing.input_size if fixed else stored,
        },
        **training_note(model.name, evaluation.test_on(dataset)),
    }


class Summarise(beam.DoFn):
    """(None, all of Predict's results as a side input) -> dataset fingerprint, once.

    Writes each model's summary, and the tables of all models.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation

    def process(self, _: Any, evaluated: Iterable[EvaluatedShard | FailedModel]) -> Iterator[str]:
        with timed("evaluate"):
            dataset = self._summarise(evaluated)
        yield dataset

    def _summarise(self, evaluated: Iterable[EvaluatedShard | FailedModel]) -> str:
        store = self._evaluation.store
        dataset = Dataset.open(store)
        expected = list(dataset.shards(self._evaluation.split))
        by_model, failed = sort_results(evaluated)
        for order, spec in enumerate(self._evaluation.models):
            if order in failed:
                count("models_failed")
                note_failure(store, failed[order], self._evaluation.how, dataset)
                continue
            shards = sorted(by_model.get(order, []), key=lambda shard: shard.shard)
            if [shard.shard for shard in shards] != expected:
                raise JobError(
                    f"{spec}: predictions of {len(shards)} of {len(expected)} shards arrived. "
                    "Run the same command again to go on"
                )
            summary = self._summary(dataset, shards)
            data = (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode()
            folder = result_folder(summary["model"], summary["evaluation"])
            store.update(summary_file(folder), data)
            forget_failure(store, spec, summary["model"], self._evaluation.how)
            current = {shard.path for shard in shards}
            current |= {logits_file(folder, self._evaluation.split, n) for n in expected}
            for kind in ("predictions", "logits"):
                for path in list(store.walk(f"results/{folder}/{kind}")):
                    if path not in current:
                        store.delete(path)
        with held(store, TABLES_LOCK, wait=60):
            write_tables(store, dataset.manifest.fingerprint)
        store.remove_temporary()
        return dataset.manifest.fingerprint

    def _summary(self, dataset: Dataset, shards: list[EvaluatedShard]) -> dict[str, Any]:
        predictions = read_predictions(self._evaluation.store, [shard.path for shard in shards])
        images = Images.read(dataset, self._evaluation.split, self._evaluation.holdout)
        about = json.loads(shards[0].about)
        folder = result_folder(about["model"], about["evaluation"])
        return {
            **about,
            "entry": self._evaluation.models[shards[0].order],
            "dataset": dataset.manifest.fingerprint,
            "libraries": {name: metadata.version(name) for name in _LIBRARIES},
            "evaluate_version": EVALUATE_VERSION,
            **summarise(dataset, images, predictions, dataset.taxonomy),
            "power": power_of(dataset, images, folder, self._evaluation.split),
        }


class Evaluate(beam.PTransform):
    """Evaluates models on a finished dataset: its fingerprint -> the same, one element."""

    def __init__(self, evaluation: Evaluation, taxonomy: Taxonomy) -> None:
        super().__init__()
        self._evaluation = evaluation
        self._taxonomy = taxonomy

    def expand(self, dataset: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        predict = beam.ParDo(Predict(self._evaluation, self._taxonomy)).with_output_types(
            EvaluatedShard | FailedModel
        )
        evaluated = (
            dataset
            | "Shards"
            >> beam.ParDo(ShardGroups(self._evaluation)).with_output_types(tuple[int, int])
            | "GatherGroup" >> beam.GroupByKey()
            | "Predict" >> self._evaluation.on_workers(predict)
        )
        return dataset | "Summarise" >> beam.ParDo(
            Summarise(self._evaluation), evaluated=beam.pvalue.AsList(evaluated)
        ).with_output_types(str)
