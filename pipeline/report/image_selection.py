"""Selects the images that the page shows; images on which the background decides come first."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.analyses.evaluation.results import Summary
from pipeline.dataset.folder import Dataset
from pipeline.display.evidence import Evidence, ModelResults
from pipeline.evaluate.result_files import result_shard
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.hashing import keyed_hash
from transforms.variants import MIXED

PER_CLASS = 8
"""Largest number of images of each class on the page."""


@dataclasses.dataclass(frozen=True, order=True)
class Candidate:
    """An image that the page may show. Candidates sort in the order in which they are chosen.

    Attributes:
      rank: (minus the number of models that another background turns wrong, minus the number of
        wrong predictions on mixed versions, a hash of the key).
      key: key of the image.
      label: label of its class.
    """

    rank: tuple[int, int, int]
    key: str
    label: int


Evaluated = tuple[ModelResults, Summary]
"""A model, and the summary of its evaluation."""


def shown_models(evidence: Evidence) -> tuple[str, tuple[Evaluated, ...]]:
    """Returns the split that images are chosen from, and the models evaluated on it."""
    splits = evidence.dataset.manifest.config.split
    models = evidence.models_with(Summary)
    split = models[0][1].evaluation.split if models else splits[0]
    return split, tuple(one for one in models if one[1].evaluation.split == split)


def choose_images(
    evidence: Evidence, split: str, models: Sequence[Evaluated], per_class: int = PER_CLASS
) -> list[Candidate]:
    """Chooses the images to show: in each class the `per_class` images with the lowest ranks, all
    sorted by rank.

    Reads one shard at a time, and only the columns that tell which predictions are right.
    """
    dataset = evidence.dataset
    best: dict[int, list[Candidate]] = {}
    for shard in dataset.shards(split):
        turned, wrong = _failures(dataset.store, split, shard, models)
        for row in dataset.index_of_shard(split, shard):
            if not row["selected"]:
                continue
            key, label = row["key"], row["label"]
            rank = (-turned.get(key, 0), -wrong.get(key, 0), keyed_hash(0, "report", key))
            kept = best.setdefault(label, [])
            kept.append(Candidate(rank, key, label))
            if len(kept) > 64 * per_class:
                best[label] = heapq.nsmallest(per_class, kept)
    return sorted(
        candidate for kept in best.values() for candidate in heapq.nsmallest(per_class, kept)
    )


def _failures(
    store: Store, split: str, shard: int, models: Iterable[Evaluated]
) -> tuple[dict[str, int], dict[str, int]]:
    """Counts for each key the models that are right on `mixed_same` and wrong on another mixed
    version, and the wrong predictions on all mixed versions. Versions whose predictions are
    outdated or incomplete (`Summary.missing`) do not count."""
    turned: dict[str, int] = {}
    wrong: dict[str, int] = {}
    for model in models:
        variants = _current(MIXED, model)
        wanted = pc.field("label_rule") == model[1].headline
        wanted &= pc.field("variant").isin(variants)
        path = result_shard(model[0].folder, "predictions", split, shard)
        if not store.exists(path):
            continue
        columns = ["variant", "key", "correct"]
        table = read_table(store, path, columns=columns, filters=wanted)
        same: set[str] = set()
        others: set[str] = set()
        for variant, key, correct in zip(
            *(table[column].to_pylist() for column in columns), strict=True
        ):
            if not correct:
                wrong[key] = wrong.get(key, 0) + 1
                if variant != "mixed_same":
                    others.add(key)
            elif variant == "mixed_same":
                same.add(key)
        for key in same & others:
            turned[key] = turned.get(key, 0) + 1
    return turned, wrong


def _current(variants: Sequence[str], model: Evaluated) -> pa.Array:
    """Returns the variants on which a model has complete predictions that are up to date."""
    return pa.array([name for name in variants if name not in model[1].missing], pa.string())


def read_predictions_of(
    dataset: Dataset, split: str, model: Evaluated, keys: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Reads a model's predictions on some images, by all label rules, on all versions whose
    predictions are complete and up to date."""
    store = dataset.store
    variants = _current(dataset.picture_variants, model)
    shards = sorted({dataset.shard_of(split, key) for key in keys})
    paths = [result_shard(model[0].folder, "predictions", split, shard) for shard in shards]
    columns = ["label_rule", "variant", "key", "prediction", "output", "correct", "top1_score"]
    wanted = ds.field("key").isin(list(keys)) & ds.field("variant").isin(variants)
    for path in paths:
        if store.exists(path):
            table = read_table(store, path, columns=columns, filters=wanted)
            yield from table.to_pylist()
