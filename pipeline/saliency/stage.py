"""Saliency: how much of a model's gradient lies on the foreground, on (model, output shard).

dataset -> groups of shards -> Explain (one model at a time) -> Measure
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator

import apache_beam as beam

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.gather import ModelShard, write_models
from pipeline.evaluate.plan import model_identity
from pipeline.evaluate.predict import Predictor
from pipeline.evaluate.resident import each_model
from pipeline.evaluate.stage import ShardGroups
from pipeline.memory import keep_freed_memory
from pipeline.models import LoadedModel
from pipeline.results.answers import Images
from pipeline.results.failures import FailedModel
from pipeline.results.files import result_folder
from pipeline.runner.counters import timed
from pipeline.saliency.plan import METHOD, SaliencyPlan, shown_images
from pipeline.saliency.results import (
    measure,
    saliency_file,
    shown_rows,
    write_saliency_table,
)
from pipeline.saliency.shards import SaliencyShards, explain_shard
from pipeline.storage.lock import TABLES_LOCK, held, model_lock
from transforms.taxonomy import Taxonomy


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
                        path = explain_shard(shards, predictor, self._taxonomy, shard, keys)
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
            failures="saliency_failed",
            file=saliency_file,
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
            "method": METHOD,
            "variant": self._plan.variant,
            **measure(store, paths, unit_of),
            "maps": shown_rows(store, paths, shown, folder),
        }
        data = (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
        store.update(saliency_file(folder), data)
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
