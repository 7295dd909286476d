"""Gather: the last step of a stage that runs models, where each model's shards come together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence

from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.evaluate.failures import FailedModel, note_failures
from pipeline.evaluate.plan import Evaluation
from pipeline.runtime.counters import count

_FAILED = {
    "evaluate": "models_failed",
    "attack": "attacks_failed",
    "saliency": "saliency_failed",
}
"""Counters of failures, by stage."""


@dataclasses.dataclass(frozen=True)
class ModelShard:
    """What a model gave on a shard, up to date.

    Attributes:
      order: the model's place among the models.
      shard: the shard's number; where chunks of images take its place, the chunk's.
      about: identity of the model, JSON.
      path: of the file.
    """

    order: int
    shard: int
    about: str
    path: str


def sort_results(
    results: Iterable[ModelShard | FailedModel],
) -> tuple[dict[int, list[ModelShard]], dict[int, FailedModel]]:
    """Results of a stage by the place of their model, and the models that failed by theirs."""
    by_model: dict[int, list[ModelShard]] = {}
    failed: dict[int, FailedModel] = {}
    for result in results:
        if isinstance(result, FailedModel):
            failed[result.order] = result
        else:
            by_model.setdefault(result.order, []).append(result)
    return by_model, failed


def all_shards(
    entry: str, found: Iterable[ModelShard], expected: Sequence[int], what: str
) -> list[ModelShard]:
    """A model's shards, in their order.

    Args:
      entry: of `--models`.
      found: what has arrived.
      expected: rising numbers of the shards.
      what: they are, such as `predictions of {} of {} shards`.

    Raises:
      JobError: some have not arrived.
    """
    shards = sorted(found, key=lambda shard: shard.shard)
    if [shard.shard for shard in shards] != list(expected):
        raise JobError(
            f"{entry}: {what.format(len(shards), len(expected))} arrived. "
            "Run the same command again to go on"
        )
    return shards


def write_models(
    evaluation: Evaluation,
    dataset: Dataset,
    results: Iterable[ModelShard | FailedModel],
    write: Callable[[list[ModelShard]], None],
    *,
    expected: Sequence[int],
    what: str,
    stage: str,
) -> None:
    """Writes what is said of each model, or that it failed.

    Args:
      evaluation: models, and how they are run.
      dataset: that they are run on.
      results: of the stage, all of them.
      write: takes a model's shards in their order, and writes what is said of it.
      expected, what: as for `all_shards`.
      stage: as for `note_failures`.

    Raises:
      JobError: shards of a model have not arrived.
    """
    by_model, failed = sort_results(results)
    succeeded = []
    for order, entry in enumerate(evaluation.models):
        if order in failed:
            count(_FAILED[stage])
            continue
        shards = all_shards(entry, by_model.get(order, []), expected, what)
        write(shards)
        succeeded += [entry, json.loads(shards[0].about)["model"]]
    note_failures(
        evaluation.store,
        dataset.manifest.fingerprint,
        stage,
        evaluation.how,
        failed.values(),
        succeeded,
    )
