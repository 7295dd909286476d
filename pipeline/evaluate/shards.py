"""Predictions of a model on an output shard: what they depend on, where they lie, their making.

They are one file, keyed by weights, pixels and evaluation configuration: what is there for the
same key is not computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

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
from transforms.scoring import LABEL_RULES, PAPER_RULE, labels_of_outputs
from transforms.taxonomy import Taxonomy
from transforms.variants import is_picture


def find_predictions(
    evaluation: Evaluation, dataset: Dataset, model: LoadedModel, shard: int
) -> tuple[str, str, bool]:
    """Where the predictions of a (model, shard) lie, their fingerprint, and whether they are
    there already."""
    folder = result_folder(model.name, evaluation.how)
    path = result_shard(folder, "predictions", evaluation.split, shard)
    files = dataset.shard_files(evaluation.split, shard, _pictures(dataset))
    checksum = fingerprint(
        model.name,
        model.weights_sha256,
        dataclasses.asdict(model.preprocessing),
        dataclasses.asdict(evaluation.predict),
        EVALUATE_VERSION,
        [file.sha256 for file in files],
        # Groups may change where pictures do not.
        *([sorted(_tested(evaluation, dataset, shard))] if evaluation.holdout else []),
        *dataset.own_taxonomy,
    )
    about = read_about(evaluation.store, path)
    return path, checksum, about is not None and about.fingerprint == checksum


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
    path, checksum, is_there = find_predictions(evaluation, dataset, model, shard)
    if is_there:
        count("prediction_shards_kept")
        return path
    if predictor is None:
        return None
    tested = _tested(evaluation, dataset, shard)
    probed = keys_to_keep(tested, len(dataset.shards(evaluation.split)))
    output_labels = labels_of_outputs(model.num_outputs, taxonomy)
    schema = PREDICTION_SCHEMA
    tables = [schema.empty_table()]
    samples = _samples(dataset, evaluation.split, shard, tested)
    with contextlib.closing(predictor.logits(samples)) as batches:
        for batch, logits in batches:
            scored = _prediction_table(model.name, batch, logits, output_labels, schema, probed)
            tables.append(scored)
            count("pictures_predicted", len(batch))
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    count_written([write_table(evaluation.store, path, table, ShardFiles(checksum, ()))])
    count("prediction_shards_made")
    return path


def _tested(evaluation: Evaluation, dataset: Dataset, shard: int) -> frozenset[str]:
    return frozenset(row["key"] for row in evaluation.rows(dataset, shard))


def _samples(dataset: Dataset, split: str, shard: int, tested: frozenset[str]) -> Iterator[Sample]:
    """Samples of all variants of a shard that are tested on, with their variant as a field."""
    for variant in _pictures(dataset):
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
    schema: pa.Schema,
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
        }
        arrays = [pa.array(columns[f.name]).cast(f.type) for f in schema]
        tables.append(pa.Table.from_arrays(arrays, schema=schema))
    return pa.concat_tables(tables)
