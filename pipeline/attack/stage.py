"""Attack: the stage of adversarial backgrounds, on (model, chunk of foregrounds).

dataset -> groups of chunks -> TryBackgrounds (one model at a time) -> Measure
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from pipeline.attack.chunks import Chunks, HeldBackgrounds
from pipeline.attack.plan import AttackGrid, Attacking, open_grid
from pipeline.attack.results import AttackedModel, write_attack
from pipeline.attack.tables import write_attack_tables
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.gather import ModelShard, write_models
from pipeline.evaluate.plan import model_identity
from pipeline.evaluate.predict import Predictor
from pipeline.evaluate.resident import each_model
from pipeline.memory import keep_freed_memory
from pipeline.models import LoadedModel
from pipeline.results.failures import FailedModel
from pipeline.runner.counters import timed
from pipeline.storage.lock import TABLES_LOCK, held, model_lock
from transforms.taxonomy import Taxonomy


class ChunkGroups(beam.DoFn):
    """Dataset fingerprint -> (group, chunk)."""

    def __init__(self, attacking: Attacking) -> None:
        self._attacking = attacking

    def process(self, _: str) -> Iterator[tuple[int, int]]:
        evaluation = self._attacking.evaluation
        for chunk in open_grid(Dataset.open(evaluation.store), self._attacking).chunks:
            yield chunk % evaluation.groups, chunk


class TryBackgrounds(beam.DoFn):
    """(group, its chunks) -> ModelShards, or a FailedModel, model after model."""

    def __init__(self, attacking: Attacking, taxonomy: Taxonomy) -> None:
        self._attacking = attacking
        self._taxonomy = taxonomy

    def setup(self) -> None:
        keep_freed_memory()

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[ModelShard | FailedModel]:
        group, numbers = element[0], sorted(element[1])
        evaluation = self._attacking.evaluation
        dataset = Dataset.open(evaluation.store)
        grid = open_grid(dataset, self._attacking)
        backgrounds = HeldBackgrounds(dataset, evaluation.split, grid)
        pairs = {n: len(grid.positions(n)) * len(grid.backgrounds) for n in numbers}

        def attack(order: int, model: LoadedModel, predictor: Predictor) -> Iterator[ModelShard]:
            about = model_identity(model, evaluation, dataset)
            chunks = Chunks(dataset, self._attacking, grid, model, about)
            text = json.dumps(about, sort_keys=True)
            with held(evaluation.store, model_lock(chunks.folder, group)):
                for chunk in chunks.make(numbers, predictor, backgrounds, self._taxonomy):
                    note_done(order, chunk)
                    yield ModelShard(order, chunk, text, chunks.path(chunk))

        def note_done(order: int, chunk: int) -> None:
            evaluation.progress.note_done("attack", f"{order}-{chunk:05d}", pairs[chunk])

        for result in each_model(
            evaluation,
            self._taxonomy,
            attack,
            stage="attack",
            group=group,
            total=sum(pairs.values()),
            test=evaluation.test_on(dataset),
        ):
            yield result
            if isinstance(result, FailedModel):
                for chunk in numbers:
                    note_done(result.order, chunk)


class Measure(beam.DoFn):
    """(None, all of TryBackgrounds' results as a side input) -> dataset fingerprint, once.

    Writes each model's measures, and the tables of all models.
    """

    def __init__(self, attacking: Attacking, taxonomy: Taxonomy) -> None:
        self._attacking = attacking
        self._taxonomy = taxonomy

    def process(self, _: Any, tried: Iterable[ModelShard | FailedModel]) -> Iterator[str]:
        with timed("attack"):
            dataset = self._measure(tried)
        yield dataset

    def _measure(self, tried: Iterable[ModelShard | FailedModel]) -> str:
        evaluation = self._attacking.evaluation
        store = evaluation.store
        dataset = Dataset.open(store)
        grid = open_grid(dataset, self._attacking)
        write_models(
            evaluation,
            dataset,
            tried,
            functools.partial(self._write, dataset, grid),
            expected=grid.chunks,
            what="predictions of {} of {} chunks",
            stage="attack",
        )
        with held(store, TABLES_LOCK, wait=60):
            write_attack_tables(store, dataset.manifest.fingerprint)
        store.remove_temporary()
        return dataset.manifest.fingerprint

    def _write(self, dataset: Dataset, grid: AttackGrid, chunks: list[ModelShard]) -> None:
        """Writes a model's measures."""
        about = json.loads(chunks[0].about)
        paths = tuple(chunk.path for chunk in chunks)
        write_attack(AttackedModel(dataset, self._attacking, grid, about, paths), self._taxonomy)


class Attack(beam.PTransform):
    """Attacks models on a finished dataset: its fingerprint -> the same, one element."""

    def __init__(self, attacking: Attacking, taxonomy: Taxonomy) -> None:
        super().__init__()
        self._attacking = attacking
        self._taxonomy = taxonomy

    def expand(self, dataset: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        tries = beam.ParDo(TryBackgrounds(self._attacking, self._taxonomy)).with_output_types(
            ModelShard | FailedModel
        )
        tried = (
            dataset
            | "Chunks"
            >> beam.ParDo(ChunkGroups(self._attacking)).with_output_types(tuple[int, int])
            | "GatherGroup" >> beam.GroupByKey()
            | "TryBackgrounds" >> self._attacking.evaluation.on_workers(tries)
        )
        return dataset | "Measure" >> beam.ParDo(
            Measure(self._attacking, self._taxonomy), tried=beam.pvalue.AsList(tried)
        ).with_output_types(str)
