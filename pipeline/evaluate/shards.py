"""Making the predictions of a model on output shards.

They are a file for each shard, in which each row says what it is of: weights, evaluation settings,
and the file that holds the picture. What is there for the same is not computed again, so that a
new variant costs only its own pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.sinks import Sample
from pipeline.evaluate.logits import PROBED, keys_to_keep
from pipeline.evaluate.predictions import About, prediction_file, predictions_of, tested_keys
from pipeline.evaluate.results import PREDICTION_SCHEMA
from pipeline.evaluate.work import Made, ModelWork, NoteDone
from pipeline.runtime.counters import count
from pipeline.storage.state_files import read_intact, read_table
from pipeline.storage.store import Store
from transforms.scoring import LABEL_RULES, PAPER_RULE, labels_of_outputs

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Those pictures of a variant on a shard that a model is tested on: an iterable of samples.

    Attributes:
      dataset: that they are of.
      split, shard, variant: where they lie in it.
      keys: of their images.
    """

    dataset: Dataset
    split: str
    shard: int
    variant: str
    keys: frozenset[str]

    def __iter__(self) -> Iterator[Sample]:
        samples = self.dataset.samples(self.split, self.shard, self.variant)
        return (sample for sample in samples if sample.key in self.keys)


class Scorer(Protocol):
    """What gives logits: a `Predictor`, or who knows them without a forward pass.

    Attributes:
      device: that they were made on.
    """

    device: torch.device

    def logits(
        self, samples: Pictures
    ) -> Generator[tuple[list[Sample], NDArray[np.float32]], None, None]:
        """As `Predictor.logits`."""


class PredictShards(ModelWork):
    """Predictions of a model on output shards.

    Args:
      dataset: that they are of.
      about: the model, and how it is run.
      store: the dataset folder that they lie in, None for that of `dataset`.
    """

    def __init__(self, dataset: Dataset, about: About, store: Store | None = None) -> None:
        super().__init__(store or dataset.store)
        self._dataset, self._about = dataset, about
        self._known: dict[int, dict[str, str]] = {}

    def _of(self, shard: int) -> dict[str, str]:
        if shard not in self._known:
            self._known[shard] = predictions_of(self._dataset, self._about, shard)
        return self._known[shard]

    def path(self, unit: int) -> str:
        """As `ModelWork.path`."""
        return prediction_file(self._about, unit)

    def checksum(self, unit: int) -> str:
        """As `ModelWork.checksum`."""
        return fingerprint(list(self._of(unit).items()))

    def make(
        self, predictor: Scorer, units: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[Made, None, None]:
        """As `ModelWork.make`; of a file that is there, it keeps what is still of the same."""
        outputs = labels_of_outputs(self._about["num_outputs"], self._dataset.taxonomy)
        split = self._about["evaluation"]["split"]
        for shard in missing:
            tested = tested_keys(self._dataset, self._about, shard)
            probed = keys_to_keep(tested, len(self._dataset.shards(split)))
            kept = self._kept(shard)
            tables = [PREDICTION_SCHEMA.empty_table()]
            # Variant by variant: what else there is shall not change in which batch a picture is.
            for variant, of in self._of(shard).items():
                if variant in kept:
                    tables.append(kept[variant])
                    note(shard, len(kept[variant]) // len(LABEL_RULES))
                    continue
                pictures = Pictures(self._dataset, split, shard, variant, tested)
                with contextlib.closing(predictor.logits(pictures)) as batches:
                    for batch, logits in batches:
                        same = {
                            "model": self._about["model"],
                            "variant": variant,
                            "of": of,
                            "device": predictor.device.type,
                        }
                        kept_logits = probed if variant == PROBED else frozenset()
                        tables.append(_table(same, batch, logits, outputs, kept_logits))
                        count("pictures_predicted", len(batch))
                        note(shard, len(batch))
            yield Made(shard, _joined(tables))

    def _kept(self, shard: int) -> dict[str, pa.Table]:
        """By variant, the predictions that are there from an earlier evaluation."""
        path = self.path(shard)
        there = read_intact(self.store, path, lambda: read_table(self.store, path))
        if there is None or not there.schema.equals(PREDICTION_SCHEMA):
            return {}
        found = {
            variant: there.filter(pc.equal(there["of"], of))
            for variant, of in self._of(shard).items()
        }
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


def _table(
    same: dict[str, str],
    batch: list[Sample],
    logits: np.ndarray[Any, np.dtype[np.float32]],
    output_labels: np.ndarray[Any, np.dtype[np.int64]],
    probed: frozenset[str],
) -> pa.Table:
    """Predictions of a batch, under each label rule.

    Args:
      same: columns that are the same in all rows.
      batch: n samples.
      logits: (n, outputs).
      output_labels: (outputs,) label of each.
      probed: keys of those whose logits are kept.
    """
    labels = np.asarray([sample.fields["label"] for sample in batch], np.int64)
    kept = [row if s.key in probed else None for s, row in zip(batch, logits, strict=True)]
    tables = []
    for rule, score in LABEL_RULES.items():
        scores = score(logits, labels, output_labels)
        columns = {
            **{name: [value] * len(batch) for name, value in same.items()},
            "label_rule": [rule] * len(batch),
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
        arrays = [pa.array(columns[f.name]).cast(f.type) for f in PREDICTION_SCHEMA]
        tables.append(pa.Table.from_arrays(arrays, schema=PREDICTION_SCHEMA))
    return pa.concat_tables(tables)
