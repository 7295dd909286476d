"""Saliency: how much of a model's gradient lies on the foreground, on (model, output shard).

dataset -> groups of shards -> Explain (one model at a time) -> Measure
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam

from pipeline.analyses.saliency.plan import METHOD, SaliencyPlan, shown_images
from pipeline.analyses.saliency.results import measure, shown_rows
from pipeline.analyses.saliency.shards import SaliencyShards, explain_shard
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.answers import Images
from pipeline.evaluate.failures import FailedModel
from pipeline.evaluate.gather import ModelShard, write_models
from pipeline.evaluate.plan import model_identity
from pipeline.evaluate.results import result_file, result_folder, write_result
from pipeline.evaluate.work import Begun, Left, Work, run_models
from pipeline.models import LoadedModel
from pipeline.models.predict import Predictor
from pipeline.runtime.counters import timed
from pipeline.runtime.lock import held, model_lock
from transforms.taxonomy import Taxonomy


class Explain(Work):
    """Saliency of output shards."""

    stage = "saliency"
    refuses_overlap = False

    def __init__(self, plan: SaliencyPlan, taxonomy: Taxonomy) -> None:
        super().__init__(plan.evaluation, taxonomy)
        self._plan = plan

    def units(self, dataset: Dataset) -> Iterable[int]:
        return dataset.shards(self.evaluation.split)

    def begin(self, dataset: Dataset, group: int, units: Sequence[int]) -> Begun:
        evaluation = self.evaluation
        shown = shown_images(dataset, self._plan)

        def explain(
            order: int, model: LoadedModel, predictor: Predictor | None, numbers: Sequence[int]
        ) -> Iterator[ModelShard | Left]:
            about = model_identity(model, evaluation, dataset)
            folder = result_folder(model.name, about["evaluation"])
            shards = SaliencyShards(dataset, self._plan, model, folder)
            text = json.dumps(about, sort_keys=True)
            with held(evaluation.store, model_lock(folder, group)):
                for shard in numbers:
                    keys = [key for key, place in shown.items() if place == shard]
                    with timed("saliency"):
                        path = explain_shard(shards, predictor, self.taxonomy, shard, keys)
                    yield ModelShard(order, shard, text, path) if path else Left(order, shard)

        return Begun({unit: self._images(dataset, unit) for unit in units}, explain)

    def _images(self, dataset: Dataset, shard: int) -> int:
        files = dataset.shard_files(self._plan.evaluation.split, shard, (self._plan.variant,))
        return sum(file.samples or 0 for file in files)


class Measure(beam.DoFn):
    """(None, all of Explain's results as a side input) -> dataset fingerprint, once.

    Writes what is said of each model, and the table of all models.
    """

    def __init__(self, plan: SaliencyPlan) -> None:
        self._plan = plan

    @timed("saliency")
    def process(self, dataset: str, explained: Iterable[ModelShard | FailedModel]) -> list[str]:
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
        store.remove_temporary()
        return [dataset]

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
        explained = run_models(dataset, Explain(self._plan, self._taxonomy), "Explain")
        return dataset | "Measure" >> beam.ParDo(
            Measure(self._plan), explained=beam.pvalue.AsList(explained)
        ).with_output_types(str)
