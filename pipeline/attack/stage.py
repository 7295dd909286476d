"""Attack: the stage of adversarial backgrounds, on (model, chunk of foregrounds).

dataset -> groups of chunks -> TryBackgrounds (one model at a time) -> Measure
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import torch

from pipeline.attack.chunks import Chunks, HeldBackgrounds
from pipeline.attack.plan import Attacking, open_grid
from pipeline.attack.results import AttackedModel, attack_file, write_attack
from pipeline.attack.tables import write_attack_tables
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError, ModelError
from pipeline.evaluate.resident import free_memory, load_resident
from pipeline.evaluate.stage import model_identity
from pipeline.memory import keep_freed_memory
from pipeline.results.failures import FailedModel, forget_failure, note_failure, sort_results
from pipeline.runner.counters import count, timed
from pipeline.storage.lock import TABLES_LOCK, held, model_lock
from pipeline.training.leakage import refuse_overlap
from transforms.taxonomy import Taxonomy

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TriedChunk:
    """Predictions that are up to date: identity of the model, and the file's path."""

    order: int
    chunk: int
    about: str
    path: str


class ChunkGroups(beam.DoFn):
    """Dataset fingerprint -> (group, chunk)."""

    def __init__(self, attacking: Attacking) -> None:
        self._attacking = attacking

    def process(self, _: str) -> Iterator[tuple[int, int]]:
        evaluation = self._attacking.evaluation
        for chunk in open_grid(Dataset.open(evaluation.store), self._attacking).chunks:
            yield chunk % evaluation.groups, chunk


class TryBackgrounds(beam.DoFn):
    """(group, its chunks) -> TriedChunks, or a FailedModel, model after model."""

    def __init__(self, attacking: Attacking, taxonomy: Taxonomy) -> None:
        self._attacking = attacking
        self._taxonomy = taxonomy

    def setup(self) -> None:
        keep_freed_memory()

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[TriedChunk | FailedModel]:
        group, numbers = element[0], sorted(element[1])
        evaluation = self._attacking.evaluation
        progress = evaluation.progress
        dataset = Dataset.open(evaluation.store)
        grid = open_grid(dataset, self._attacking)
        backgrounds = HeldBackgrounds(dataset, evaluation.split, grid)
        pairs = {n: len(grid.positions(n)) * len(grid.backgrounds) for n in numbers}
        for order in range(len(evaluation.models)):
            progress.note_total("attack", f"{order}-{group}", sum(pairs.values()))
        torch.set_num_threads(evaluation.threads)
        for order, spec in enumerate(evaluation.models):
            name = spec
            try:
                with timed("attack"):
                    refuse_overlap(spec, evaluation.test_on(dataset))
                    model, predictor = load_resident(spec, evaluation, self._taxonomy)
                name = model.name
                about = model_identity(model, evaluation, dataset)
                chunks = Chunks(dataset, self._attacking, grid, model, about)
                text = json.dumps(about, sort_keys=True)
                with held(evaluation.store, model_lock(chunks.folder, group)):
                    for chunk in chunks.make(numbers, predictor, backgrounds, self._taxonomy):
                        progress.note_done("attack", f"{order}-{chunk:05d}", pairs[chunk])
                        yield TriedChunk(order, chunk, text, chunks.path(chunk))
            except ModelError as error:
                _LOG.warning("%s failed", name, exc_info=True)
                yield FailedModel(order, spec, name, " ".join(str(error).split()))
                for chunk in numbers:
                    progress.note_done("attack", f"{order}-{chunk:05d}", pairs[chunk])
            model = predictor = chunks = None  # type: ignore[assignment]
            free_memory()


class Measure(beam.DoFn):
    """(None, all of TryBackgrounds' results as a side input) -> dataset fingerprint, once.

    Writes each model's measures, and the tables of all models.
    """

    def __init__(self, attacking: Attacking, taxonomy: Taxonomy) -> None:
        self._attacking = attacking
        self._taxonomy = taxonomy

    def process(self, _: Any, tried: Iterable[TriedChunk | FailedModel]) -> Iterator[str]:
        with timed("attack"):
            dataset = self._measure(tried)
        yield dataset

    def _measure(self, tried: Iterable[TriedChunk | FailedModel]) -> str:
        evaluation = self._attacking.evaluation
        store = evaluation.store
        dataset = Dataset.open(store)
        grid = open_grid(dataset, self._attacking)
        how = evaluation.how
        by_model, failed = sort_results(tried)
        for order, spec in enumerate(evaluation.models):
            if order in failed:
                count("attacks_failed")
                note_failure(store, failed[order], how, dataset, attack_file)
                continue
            found = sorted(by_model.get(order, []), key=lambda result: result.chunk)
            if [result.chunk for result in found] != list(grid.chunks):
                raise JobError(
                    f"{spec}: predictions of {len(found)} of {len(grid.chunks)} chunks arrived. "
                    "Run the same command again to go on"
                )
            about = json.loads(found[0].about)
            attacked = AttackedModel(
                dataset, self._attacking, grid, about, tuple(result.path for result in found)
            )
            write_attack(attacked, self._taxonomy)
            forget_failure(store, spec, about["model"], how, attack_file)
        with held(store, TABLES_LOCK, wait=60):
            write_attack_tables(store, dataset.manifest.fingerprint)
        store.remove_temporary()
        return dataset.manifest.fingerprint


class Attack(beam.PTransform):
    """Attacks models on a finished dataset: its fingerprint -> the same, one element."""

    def __init__(self, attacking: Attacking, taxonomy: Taxonomy) -> None:
        super().__init__()
        self._attacking = attacking
        self._taxonomy = taxonomy

    def expand(self, dataset: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        tries = beam.ParDo(TryBackgrounds(self._attacking, self._taxonomy)).with_output_types(
            TriedChunk | FailedModel
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
