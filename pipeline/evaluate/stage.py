"""Evaluate: the inference stage, on (model, output shard).

dataset -> groups of shards -> Predict (one model at a time) -> Summarise
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any

import apache_beam as beam

from pipeline.dataset.fingerprints import EVALUATE_VERSION
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.analysis import summarise
from pipeline.evaluate.answers import Images
from pipeline.evaluate.failures import FailedModel
from pipeline.evaluate.gather import ModelShard, write_models
from pipeline.evaluate.plan import Evaluation, model_identity
from pipeline.evaluate.power import power_of
from pipeline.evaluate.results import read_predictions, result_file, result_folder, write_result
from pipeline.evaluate.shards import predict_shard
from pipeline.evaluate.work import Begun, Left, Work, run_models
from pipeline.models import LoadedModel
from pipeline.models.predict import Predictor
from pipeline.runtime.counters import timed
from pipeline.runtime.lock import held, model_lock
from transforms.taxonomy import Taxonomy

_LIBRARIES = ("numpy", "torch", "timm")


class Predict(Work):
    """Predictions of output shards."""

    stage = "evaluate"
    refuses_overlap = True

    def units(self, dataset: Dataset) -> Iterable[int]:
        return dataset.shards(self.evaluation.split)

    def begin(self, dataset: Dataset, group: int, units: Sequence[int]) -> Begun:
        evaluation = self.evaluation

        def predict(
            order: int, model: LoadedModel, predictor: Predictor | None, shards: Sequence[int]
        ) -> Iterator[ModelShard | Left]:
            about = json.dumps(model_identity(model, evaluation, dataset), sort_keys=True)
            folder = result_folder(model.name, evaluation.how)
            with held(evaluation.store, model_lock(folder, group)):
                for shard in shards:
                    with timed("evaluate"):
                        path = predict_shard(
                            evaluation, dataset, model, predictor, self.taxonomy, shard
                        )
                    yield ModelShard(order, shard, about, path) if path else Left(order, shard)

        return Begun({u: dataset.pictures(evaluation.split, u) for u in units}, predict)


class Summarise(beam.DoFn):
    """(None, all of Predict's results as a side input) -> dataset fingerprint, once.

    Writes each model's summary.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation

    @timed("evaluate")
    def process(self, _: Any, evaluated: Iterable[ModelShard | FailedModel]) -> list[str]:
        store = self._evaluation.store
        dataset = Dataset.open(store)
        write_models(
            self._evaluation,
            dataset,
            evaluated,
            functools.partial(self._write, dataset),
            expected=dataset.shards(self._evaluation.split),
            what="predictions of {} of {} shards",
            stage="evaluate",
        )
        store.remove_temporary()
        return [dataset.manifest.fingerprint]

    def _write(self, dataset: Dataset, shards: list[ModelShard]) -> None:
        """Writes a model's summary, and removes what it is not made of."""
        store = self._evaluation.store
        summary = self._summary(dataset, shards)
        folder = result_folder(summary["model"], summary["evaluation"])
        write_result(store, result_file(folder, "summary"), summary)
        current = {shard.path for shard in shards}
        for path in list(store.walk(f"results/{folder}/predictions")):
            if path not in current:
                store.delete(path)

    def _summary(self, dataset: Dataset, shards: list[ModelShard]) -> dict[str, Any]:
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
            **summarise(dataset, images, predictions, folder),
            "power": power_of(dataset, images, folder, self._evaluation.split),
        }


class Evaluate(beam.PTransform):
    """Evaluates models on a finished dataset: its fingerprint -> the same, one element."""

    def __init__(self, evaluation: Evaluation, taxonomy: Taxonomy) -> None:
        super().__init__()
        self._evaluation = evaluation
        self._taxonomy = taxonomy

    def expand(self, dataset: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        evaluated = run_models(dataset, Predict(self._evaluation, self._taxonomy), "Predict")
        return dataset | "Summarise" >> beam.ParDo(
            Summarise(self._evaluation), evaluated=beam.pvalue.AsList(evaluated)
        ).with_output_types(str)
