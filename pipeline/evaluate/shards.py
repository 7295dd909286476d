"""Predictions of a model on an output shard: what they depend on, where they lie, their making.

They are one file, in which each row says what it is of: weights, evaluation settings, and the file
that holds the picture. What is there for the same is not computed again, so that a new variant
costs only its own pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.fingerprints import EVALUATE_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import ShardFiles, read_about, write_table
from pipeline.dataset.sinks import Sample
from pipeline.evaluate.logits import PROBED, keys_to_keep
from pipeline.evaluate.plan import Evaluation
from pipeline.evaluate.results import PREDICTION_SCHEMA, result_folder, result_shard
from pipeline.models import LoadedModel
from pipeline.models.predict import Predictor
from pipeline.runtime.counters import count, count_written
from pipeline.storage.state_files import read_intact, read_table
from pipeline.storage.store import Store
from transforms.scoring import LABEL_RULES, PAPER_RULE, labels_of_outputs
from transforms.taxonomy import Taxonomy
from transforms.variants import is_picture


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The predictions of a (model, shard).

    Attributes:
      path: where they lie.
      of: by variant, what identifies its predictions.
      are_there: whether all are.
    """

    path: str
    of: dict[str, str]
    are_there: bool

    @property
    def fingerprint(self) -> str:
        """Identifies them all."""
        return fingerprint(list(self.of.items()))


def find_predictions(
    evaluation: Evaluation, dataset: Dataset, model: LoadedModel, shard: int
) -> Wanted:
    """The predictions of a (model, shard): what is wanted, and whether it is there."""
    how = [
        model.name,
        model.weights_sha256,
        dataclasses.asdict(model.preprocessing),
        dataclasses.asdict(evaluation.predict),
        EVALUATE_VERSION,
        # Groups may change where pictures do not.
        *([sorted(_tested(evaluation, dataset, shard))] if evaluation.holdout else []),
        *dataset.own_taxonomy,
    ]
    of = {}
    for variant in _pictures(dataset):
        files = dataset.shard_files(evaluation.split, shard, (variant,))
        of[variant] = fingerprint(how, variant, [file.sha256 for file in files])
    path = result_shard(
        result_folder(model.name, evaluation.how), "predictions", evaluation.split, shard
    )
    about = read_about(evaluation.store, path)
    wanted = Wanted(path, of, are_there=False)
    is_same = about is not None and about.fingerprint == wanted.fingerprint
    return dataclasses.replace(wanted, are_there=is_same)


def predict_shard(
    evaluation: Evaluation,
    dataset: Dataset,
    model: LoadedModel,
    predictor: Predictor | None,
    taxonomy: Taxonomy,
    shard: int,
) -> str | None:
    """Makes the predictions of a (model, shard), unless they are there.

    Args:
      evaluation: how models are run.
      dataset: that the shard is of.
      model: the model.
      predictor: the same on its device; None to make nothing.
      taxonomy: of the labels.
      shard: number of the output shard.

    Returns:
      The path of the predictions; None if something is missing and is not made.

    Raises:
      ModelError: the model's forward pass fails.
      JobError: a stored picture cannot be decoded.
    """
    wanted = find_predictions(evaluation, dataset, model, shard)
    if wanted.are_there:
        count("prediction_shards_kept")
        return wanted.path
    if predictor is None:
        return None
    tested = _tested(evaluation, dataset, shard)
    probed = keys_to_keep(tested, len(dataset.shards(evaluation.split)))
    output_labels = labels_of_outputs(model.num_outputs, taxonomy)
    kept = _kept(evaluation.store, wanted)
    tables = [PREDICTION_SCHEMA.empty_table()]
    # Variant by variant: what else there is shall not change in which batch a picture is.
    for variant, of in wanted.of.items():
        if variant in kept:
            tables.append(kept[variant])
            continue
        samples = _samples(dataset, evaluation.split, shard, variant, tested)
        with contextlib.closing(predictor.logits(samples)) as batches:
            for batch, logits in batches:
                made = _prediction_table(model.name, batch, logits, output_labels, of, probed)
                tables.append(made)
                count("pictures_predicted", len(batch))
    about = ShardFiles(wanted.fingerprint, ())
    count_written([write_table(evaluation.store, wanted.path, _joined(tables), about)])
    count("prediction_shards_made")
    return wanted.path


def _kept(store: Store, wanted: Wanted) -> dict[str, pa.Table]:
    """By variant, the predictions that are there from an earlier evaluation."""
    if not store.exists(wanted.path):
        return {}
    there = read_intact(store, wanted.path, lambda: read_table(store, wanted.path))
    if there is None or not there.schema.equals(PREDICTION_SCHEMA):
        return {}
    found = {variant: there.filter(pc.equal(there["of"], of)) for variant, of in wanted.of.items()}
    return {variant: table for variant, table in found.items() if len(table)}


def _joined(tables: list[pa.Table]) -> pa.Table:
    """One table, whose bytes do not tell which parts were there before."""
    table = pa.concat_tables([t.replace_schema_metadata() for t in tables])
    columns = [
        # Without the words of rows that are not there any more.
        column.cast(pa.string()).combine_chunks().dictionary_encode()
        if pa.types.is_dictionary(column.type)
        else column.combine_chunks()
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=PREDICTION_SCHEMA)


def _tested(evaluation: Evaluation, dataset: Dataset, shard: int) -> frozenset[str]:
    return frozenset(row["key"] for row in evaluation.rows(dataset, shard))


def _samples(
    dataset: Dataset, split: str, shard: int, variant: str, tested: frozenset[str]
) -> Iterator[Sample]:
    """Samples of a variant of a shard that are tested on, with their variant as a field."""
    for sample in dataset.samples(split, shard, variant):
        if sample.key in tested:
            yield dataclasses.replace(sample, fields={**sample.fields, "variant": variant})


def _pictures(dataset: Dataset) -> tuple[str, ...]:
    """The variants that models are evaluated on."""
    return tuple(name for name in dataset.variants if is_picture(name))


def _prediction_table(
    model: str,
    batch: list[Sample],
    logits: np.ndarray[Any, np.dtype[np.float32]],
    output_labels: np.ndarray[Any, np.dtype[np.int64]],
    of: str,
    probed: frozenset[str],
) -> pa.Table:
    labels = np.asarray([sample.fields["label"] for sample in batch], np.int64)
    kept = [
        row if sample.fields["variant"] == PROBED and sample.key in probed else None
        for sample, row in zip(batch, logits, strict=True)
    ]
    tables = []
    for rule, score in LABEL_RULES.items():
        scores = score(logits, labels, output_labels)
        columns = {
            "model": [model] * len(batch),
            "label_rule": [rule] * len(batch),
            "variant": [sample.fields["variant"] for sample in batch],
            "key": [sample.key for sample in batch],
            "fg_key": [sample.fields["fg_key"] for sample in batch],
            "bg_key": [sample.fields["bg_key"] for sample in batch],
            "label": labels,
            "prediction": scores.prediction,
            "output": scores.output,
            "correct": scores.prediction == labels,
            "top1_score": scores.top1,
            "true_score": scores.true,
            "logits": kept if rule == PAPER_RULE else [None] * len(batch),
            "of": [of] * len(batch),
        }
        arrays = [pa.array(columns[f.name]).cast(f.type) for f in PREDICTION_SCHEMA]
        tables.append(pa.Table.from_arrays(arrays, schema=PREDICTION_SCHEMA))
    return pa.concat_tables(tables)
