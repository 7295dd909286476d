"""Answers: a model's predictions, sorted by label rule and variant, images in one order.

Predictions name their background by key alone; its class, and the size of the foreground,
come from the dataset's index.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.results import read_predictions, result_folder, result_shard
from pipeline.storage.state_files import parse_parquet
from pipeline.storage.store import Store
from transforms.holdout import held_out
from transforms.scoring import LABEL_RULES
from transforms.taxonomy import OUTSIDE
from transforms.variants import MIXED, base_of, is_picture


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """The selected images of a split, or those of them that are tested on.

    Attributes:
      keys: (n,) strings, sorted.
      labels: (n,) int16.
      fg_fraction: (n,) float64, not a number where images are not cut apart.
      background_keys: (m,) strings, sorted: all selected images, which give backgrounds also
        where they are not tested on.
      background_labels: (m,) int16.
      units: (n,) what is resampled: the group of each image, or its key without one.
      has_groups: whether any has a group.
    """

    keys: pa.Array
    labels: NDArray[np.int16]
    fg_fraction: NDArray[np.float64]
    background_keys: pa.Array
    background_labels: NDArray[np.int16]
    units: tuple[str, ...]
    has_groups: bool = False

    @classmethod
    def read(cls, dataset: Dataset, split: str, holdout: float = 0.0) -> Images:
        """Reads a split's index, a few columns of it.

        Args:
          dataset: the dataset.
          split: its split.
          holdout: share of the images that is tested on, 0 for all of them.
        """
        shards = dataset.shards(split)
        tables = [
            _read_columns(
                dataset.store,
                dataset.index_path(split, shard),
                ["key", "label", "fg_fraction", "selected", "group"],
            )
            for shard in shards
        ]
        # Indices of shards differ in their metadata.
        table = pa.concat_tables([table.replace_schema_metadata() for table in tables])
        pool = table.filter(table["selected"]).sort_by("key").combine_chunks()
        keys = pool["key"].to_pylist()
        groups = pool["group"].to_pylist() if "group" in pool.column_names else [None] * len(keys)
        units = [group or key for group, key in zip(groups, keys, strict=True)]
        tested = held_out(units, holdout) if holdout else np.ones(len(units), np.bool_)
        table = pool.filter(pa.array(tested))
        return cls(
            keys=pa.array(table["key"].to_pylist(), pa.string()),
            labels=table["label"].to_numpy().astype(np.int16),
            fg_fraction=table["fg_fraction"].to_numpy().astype(np.float64),
            background_keys=pa.array(keys, pa.string()),
            background_labels=pool["label"].to_numpy().astype(np.int16),
            units=tuple(itertools.compress(units, tested)),
            has_groups=any(itertools.compress(groups, tested)),
        )

    @functools.cached_property
    def unit_numbers(self) -> NDArray[np.int64] | None:
        """(n,) numbers that tell units apart, from 0 on; None without groups."""
        if not self.has_groups:
            return None
        return np.unique(np.asarray(self.units, object), return_inverse=True)[1].astype(np.int64)

    @property
    def unit_count(self) -> int:
        """Number of units."""
        return len(set(self.units))

    def positions(self, keys: pa.ChunkedArray) -> NDArray[np.int64]:
        """Place of each key among the images, -1 for null and for no image of ours."""
        return _places(keys, self.keys)


def _places(keys: pa.ChunkedArray, known: pa.Array) -> NDArray[np.int64]:
    found = pc.index_in(keys, value_set=known, skip_nulls=True)
    return np.asarray(pc.fill_null(found, -1).to_numpy()).astype(np.int64)


def _read_columns(store: Store, path: str, columns: list[str]) -> pa.Table:
    """Those of the columns that a file has."""

    def read(source: Any) -> pa.Table:
        with pq.ParquetFile(source) as file:
            there = set(file.schema_arrow.names)
            return file.read(columns=[name for name in columns if name in there])

    return parse_parquet(store, path, read)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers under one label rule, in the order of the images.

    Attributes:
      labels: (n,) int16 true labels.
      predictions: (n,) int16 of each variant, replicates among them, in the dataset's order.
      bg_labels: (n,) int16 class of the background, of each mixed variant but those on scenes,
        whose class nobody knows; `OUTSIDE` where an import does not know it.
    """

    labels: NDArray[np.int16]
    predictions: dict[str, NDArray[np.int16]]
    bg_labels: dict[str, NDArray[np.int16]]

    def correct(self, variant: str) -> NDArray[np.bool_]:
        """(n,) whether each prediction is right."""
        return np.asarray(self.predictions[variant] == self.labels)

    def replicates(self, variant: str) -> list[str]:
        """The variants that are replicates of one, itself first; none if it is missing."""
        return [name for name in self.predictions if base_of(name) == variant]


def evaluated_variants(dataset: Dataset) -> tuple[str, ...]:
    """The variants that models are evaluated on, replicates among them."""
    return tuple(name for name in dataset.variants if is_picture(name))


def answers_of(
    predictions: pa.Table, images: Images, variants: Iterable[str]
) -> dict[str, Answers]:
    """Sorts a model's predictions by label rule and variant.

    Args:
      predictions: of `read_predictions`, for all shards.
      images: of the same split.
      variants: that must be there.

    Raises:
      ValueError: other images than the dataset's, or backgrounds that it does not hold.
    """
    foregrounds = images.positions(predictions["fg_key"])
    backgrounds = _places(predictions["bg_key"], images.background_keys)
    unknown = pc.is_null(predictions["bg_key"]).to_numpy()
    prediction = predictions["prediction"].to_numpy().astype(np.int16)
    rules, variants_of = (_codes(predictions[name]) for name in ("label_rule", "variant"))
    found = {}
    for rule in LABEL_RULES:
        of_rule = rules[1] == rules[0].get(rule, -1)
        answers = Answers(images.labels, {}, {})
        for variant in variants:
            rows = np.flatnonzero(of_rule & (variants_of[1] == variants_of[0].get(variant, -1)))
            places = foregrounds[rows]
            if not np.array_equal(np.sort(places), np.arange(len(images.keys))):
                raise ValueError(f"the predictions on {variant} are of other images")
            answers.predictions[variant] = np.empty(len(rows), np.int16)
            answers.predictions[variant][places] = prediction[rows]
            if base_of(variant) in MIXED:
                if (backgrounds[rows][~unknown[rows]] < 0).any():
                    raise ValueError(f"{variant} has backgrounds that are not in the index")
                bg_labels = np.where(
                    unknown[rows], OUTSIDE, images.background_labels[backgrounds[rows]]
                )
                answers.bg_labels[variant] = np.empty(len(rows), np.int16)
                answers.bg_labels[variant][places] = bg_labels
        found[rule] = answers
    return found


def _codes(column: pa.ChunkedArray) -> tuple[dict[str, int], NDArray[np.int32]]:
    """Number of each value of a column, and the (n,) numbers."""
    array = column.combine_chunks()
    numbers = {value: number for number, value in enumerate(array.dictionary.to_pylist())}
    return numbers, np.asarray(array.indices.to_numpy())


def read_answers(
    dataset: Dataset, images: Images, summary: Mapping[str, Any]
) -> dict[str, Answers]:
    """The answers behind a summary.

    Raises:
      ValueError: its predictions are not all there, or are others by now: a run that was
        stopped may have replaced some.
    """
    folder = result_folder(summary["model"], summary["evaluation"])
    split = summary["evaluation"]["split"]
    paths = [result_shard(folder, "predictions", split, shard) for shard in dataset.shards(split)]
    if not all(dataset.store.exists(path) for path in paths):
        raise ValueError("its predictions are not all there")
    predictions = read_predictions(dataset.store, paths)
    answers = answers_of(predictions, images, evaluated_variants(dataset))
    said = {
        (row["label_rule"], row["variant"]): row["correct"] for row in summary.get("accuracy", ())
    }
    for rule, of_rule in answers.items():
        for variant in of_rule.predictions:
            if said.get((rule, variant)) != int(of_rule.correct(variant).sum()):
                raise ValueError(f"its predictions on {variant} have changed")
    return answers
