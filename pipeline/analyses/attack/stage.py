"""Attack: the stage of adversarial backgrounds, on (model, chunk of foregrounds).

dataset -> groups of chunks -> TryBackgrounds (one model at a time) -> Measure
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam

from pipeline.analyses.attack.chunks import Chunks, HeldBackgrounds
from pipeline.analyses.attack.plan import AttackGrid, Attacking, open_grid
from pipeline.analyses.attack.results import AttackedModel, write_attack
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.failures import FailedModel
from pipeline.evaluate.gather import ModelShard, write_models
from pipeline.evaluate.plan import model_identity
from pipeline.evaluate.work import Begun, Left, Work, run_models
from pipeline.models import LoadedModel
from pipeline.models.predict import Predictor
from pipeline.runtime.counters import count, timed
from pipeline.runtime.lock import held, model_lock
from transforms.taxonomy import Taxonomy


class TryBackgrounds(Work):
    """Predictions of chunks of foregrounds on all backgrounds."""

    stage = "attack"
    refuses_overlap = True

    def __init__(self, attacking: Attacking, taxonomy: Taxonomy) -> None:
        super().__init__(attacking.evaluation, taxonomy)
        self._attacking = attacking

    def units(self, dataset: Dataset) -> Iterable[int]:
        return open_grid(dataset, self._attacking).chunks

    def begin(self, dataset: Dataset, group: int, units: Sequence[int]) -> Begun:
        evaluation = self.evaluation
        grid = open_grid(dataset, self._attacking)
        backgrounds = HeldBackgrounds(dataset, evaluation.split, grid)

        def attack(
            order: int, model: LoadedModel, predictor: Predictor | None, numbers: Sequence[int]
        ) -> Iterator[ModelShard | Left]:
            about = model_identity(model, evaluation, dataset)
            chunks = Chunks(dataset, self._attacking, grid, model, about)
            text = json.dumps(about, sort_keys=True)
            if predictor is None:
                left = chunks.left(numbers)
                yield from (Left(order, chunk) for chunk in left)
                for chunk in sorted(set(numbers) - set(left)):
                    count("attack_chunks_kept")
                    yield ModelShard(order, chunk, text, chunks.path(chunk))
                return
            with held(evaluation.store, model_lock(chunks.folder, group)):
                for chunk in chunks.make(numbers, predictor, backgrounds, self.taxonomy):
                    yield ModelShard(order, chunk, text, chunks.path(chunk))

        sizes = {unit: len(grid.positions(unit)) * len(grid.backgrounds) for unit in units}
        return Begun(sizes, attack)


class Measure(beam.DoFn):
    """(None, all of TryBackgrounds' results as a side input) -> dataset fingerprint, once.

    Writes each model's measures.
    """

    def __init__(self, attacking: Attacking, taxonomy: Taxonomy) -> None:
        self._attacking = attacking
        self._taxonomy = taxonomy

    @timed("attack")
    def process(self, _: Any, tried: Iterable[ModelShard | FailedModel]) -> list[str]:
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
        store.remove_temporary()
        return [dataset.manifest.fingerprint]

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
        work = TryBackgrounds(self._attacking, self._taxonomy)
        tried = run_models(dataset, work, "TryBackgrounds")
        return dataset | "Measure" >> beam.ParDo(
            Measure(self._attacking, self._taxonomy), tried=beam.pvalue.AsList(tried)
        ).with_output_types(str)
