"""Answers: a model's predictions, sorted by label rule and variant, images in one order.

Predictions name their background by key alone; its class and unit, and the size of the foreground,
come from the dataset's index.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.evaluate.prediction_files import evaluated_variants, prediction_file, predictions_of
from pipeline.evaluate.result_files import PREDICTION_SCHEMA, read_results
from pipeline.storage.state_files import parse_parquet, read_intact, read_table
from pipeline.storage.store import Store
from transforms.holdout import held_out
from transforms.scoring import LABEL_RULES
from transforms.taxonomy import OUTSIDE
from transforms.variants import EXTERNAL, MIXED, base_of


@dataclasses.dataclass(frozen=True, eq=False)
class EvalImages:
    """The selected images of a split, or those of them that are tested on.

    Attributes:
      keys: (n,) strings, sorted.
      labels: (n,) int16.
      fg_fraction: (n,) float64, not a number where images are not cut apart.
      background_keys: (m,) strings, sorted: all selected images, which give backgrounds also
        where they are not tested on.
      background_labels: (m,) int16.
      units: (n,) what counts as one: the group of each image, or its key without one.
      background_units: (m,) int64, numbers that tell apart the units of all selected images.
    """

    keys: pa.Array
    labels: NDArray[np.int16]
    fg_fraction: NDArray[np.float64]
    background_keys: pa.Array
    background_labels: NDArray[np.int16]
    units: tuple[str, ...]
    background_units: NDArray[np.int64]

    @classmethod
    def read(cls, dataset: Dataset, split: str, holdout: float = 0.0) -> EvalImages:
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
            background_units=np.unique(np.asarray(units, object), return_inverse=True)[1],
        )

    @functools.cached_property
    def unit_numbers(self) -> NDArray[np.int64]:
        """(n,) the same numbers, of the images that are tested on."""
        return self.background_units[_places(pa.chunked_array([self.keys]), self.background_keys)]

    @property
    def unit_count(self) -> int:
        """Number of units."""
        return len(set(self.units))

    def positions(self, keys: pa.ChunkedArray) -> NDArray[np.int64]:
        """Place of each key among the images, -1 for null and for no image of ours."""
        return _places(keys, self.keys)


def pictures_of(dataset: Dataset, split: str, variants: tuple[str, ...]) -> str:
    """What results of whole splits are of: fingerprint of the variants' files, of the classes, and
    of which images are of one group. Results of the same are of the dataset as it is, whatever
    else has changed in it."""
    images = EvalImages.read(dataset, split)
    files = [
        file.sha256
        for shard in dataset.shards(split)
        for file in dataset.shard_files(split, shard, variants)
    ]
    return fingerprint(files, images.units, *dataset.custom_taxonomy)


def results_of(
    dataset: Dataset, name: str, variants_of: Callable[[Mapping[str, Any]], tuple[str, ...]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Results of all models that say what they are `of`, in order of their folder.

    Args:
      dataset: as it is.
      name: as for `result_file`.
      variants_of: whose pictures a result is of.

    Returns:
      (results of the pictures that the dataset holds, with its fingerprint; names of models whose
      results are of others).
    """
    known = functools.cache(functools.partial(pictures_of, dataset))
    current, others = [], []
    for found in read_results(dataset.store, name):
        split = found["evaluation"]["split"]
        is_there = split in dataset.manifest.shards
        if is_there and found["of"] == known(split, variants_of(found)):
            current.append({**found, "dataset": dataset.manifest.fingerprint})
        else:
            others.append(found["model"])
    return current, others


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
class Predictions:
    """A model's answers under one label rule, in the order of the images.

    Attributes:
      labels: (n,) int16 true labels.
      predictions: (n,) int16 of each variant, replicates among them, in the dataset's order.
      bg_labels: (n,) int16 class of the background, of each mixed variant but those on scenes,
        whose class nobody knows; `OUTSIDE` where an import does not know it.
      bg_units: (n,) int64 of each variant with another image's background or with scenes: as
        `EvalImages.background_units`, or another number for each scene, and for each background
        that an import does not know.
    """

    labels: NDArray[np.int16]
    predictions: dict[str, NDArray[np.int16]]
    bg_labels: dict[str, NDArray[np.int16]]
    bg_units: dict[str, NDArray[np.int64]]

    def correct(self, variant: str) -> NDArray[np.bool_]:
        """(n,) whether each prediction is right."""
        return np.asarray(self.predictions[variant] == self.labels)


@dataclasses.dataclass(frozen=True)
class ModelPredictions:
    """What a model answered, as far as its predictions are of the dataset as it is.

    Attributes:
      by_rule: by label rule; of the variants that are there.
      missing: variants of which predictions are missing, or of other pictures.
      devices: what the predictions were made on, sorted.
    """

    by_rule: dict[str, Predictions]
    missing: tuple[str, ...]
    devices: tuple[str, ...]


_COLUMNS = ["label_rule", "variant", "fg_key", "bg_key", "label", "prediction", "of", "device"]


def read_predictions(
    dataset: Dataset, images: EvalImages, metadata: Mapping[str, Any]
) -> ModelPredictions:
    """Reads a model's answers.

    Args:
      dataset: as it is.
      images: of the split that the model was run on.
      metadata: the model, and how it was run.

    Raises:
      JobError: a background is not in the index.
      OSError: predictions cannot be read.
    """
    tables = [
        PREDICTION_SCHEMA.empty_table().select(_COLUMNS),
        *(
            _still_true(dataset, metadata, shard)
            for shard in dataset.shards(metadata["evaluation"]["split"])
        ),
    ]
    predictions = pa.concat_tables(tables).unify_dictionaries()
    return predictions_in_table(predictions, images, evaluated_variants(dataset, metadata))


def _still_true(dataset: Dataset, metadata: Mapping[str, Any], shard: int) -> pa.Table:
    """Predictions on a shard that are of the pictures that are there; none of a file that is
    missing, or damaged."""
    path = prediction_file(metadata, shard)

    def read() -> pa.Table:
        return read_table(dataset.store, path, columns=_COLUMNS).replace_schema_metadata()

    table = read_intact(dataset.store, path, read)
    if table is None:
        return PREDICTION_SCHEMA.empty_table().select(_COLUMNS)
    wanted = predictions_of(dataset, metadata, shard)
    variants, of = (_codes(table[name]) for name in ("variant", "of"))
    # By the number of a variant, that of what its predictions are to be of.
    numbers = {number: of[0].get(wanted.get(name, ""), -1) for name, number in variants[0].items()}
    expected = np.asarray([numbers[number] for number in range(len(numbers))], np.int32)
    is_true = of[1] == expected[variants[1]] if len(table) else np.zeros(0, np.bool_)
    return table.filter(pa.array(is_true))


def predictions_in_table(
    predictions: pa.Table, images: EvalImages, variants: Iterable[str]
) -> ModelPredictions:
    """Sorts a model's predictions by label rule and variant.

    Args:
      predictions: columns `label_rule`, `variant`, `fg_key`, `bg_key`, `prediction`, `device`.
      images: of the same split.
      variants: that are looked for.

    Raises:
      JobError: a background is not in the index.
    """
    foregrounds = images.positions(predictions["fg_key"])
    backgrounds = _places(predictions["bg_key"], images.background_keys)
    unknown = pc.is_null(predictions["bg_key"]).to_numpy()
    others = _other_units(predictions["bg_key"])
    prediction = predictions["prediction"].to_numpy().astype(np.int16)
    rules, variants_of = (_codes(predictions[name]) for name in ("label_rule", "variant"))
    by_rule = {rule: Predictions(images.labels, {}, {}, {}) for rule in LABEL_RULES}
    missing = []
    for variant in variants:
        of_variant = variants_of[1] == variants_of[0].get(variant, -1)
        rows = [
            np.flatnonzero(of_variant & (rules[1] == rules[0].get(rule, -1)))
            for rule in LABEL_RULES
        ]
        expected = np.arange(len(images.keys))
        if not all(np.array_equal(np.sort(foregrounds[of]), expected) for of in rows):
            missing.append(variant)
            continue
        for answers, of_rule in zip(by_rule.values(), rows, strict=True):
            in_order = of_rule[np.argsort(foregrounds[of_rule])]
            answers.predictions[variant] = prediction[in_order]
            if base_of(variant) in MIXED:
                known = backgrounds[in_order]
                if (known[~unknown[in_order]] < 0).any():
                    raise JobError(f"{variant} has backgrounds that are not in the index")
                bg_labels, bg_units = (
                    np.where(unknown[in_order], other, of_image[known])
                    for other, of_image in (
                        (OUTSIDE, images.background_labels),
                        (others[in_order], images.background_units),
                    )
                )
                answers.bg_labels[variant] = bg_labels.astype(np.int16)
                answers.bg_units[variant] = bg_units
            elif base_of(variant) == EXTERNAL:
                answers.bg_units[variant] = others[in_order]
    devices = tuple(sorted(filter(None, pc.unique(predictions["device"]).to_pylist())))
    return ModelPredictions(by_rule, tuple(missing), devices)


def _other_units(keys: pa.ChunkedArray) -> NDArray[np.int64]:
    """Numbers below 0 for the backgrounds of rows that are not of the dataset's images: the same
    for rows of one scene, one of its own for each that names none."""
    places = keys.combine_chunks().dictionary_encode().indices
    of_scene = np.asarray(pc.fill_null(places, 0).to_numpy(zero_copy_only=False), np.int64)
    unnamed = len(keys) + np.arange(len(keys))
    return -1 - np.where(pc.is_null(keys).to_numpy(), unnamed, of_scene)


def _codes(column: pa.ChunkedArray) -> tuple[dict[str, int], NDArray[np.int32]]:
    """Number of each value of a column, and the (n,) numbers."""
    array = column.combine_chunks()
    numbers = {value: number for number, value in enumerate(array.dictionary.to_pylist())}
    return numbers, np.asarray(array.indices.to_numpy())
