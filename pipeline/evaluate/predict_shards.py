"""Making the predictions of a model on output shards.

They are a file for each shard, in which each row says what it is of: weights, evaluation settings,
and the file that holds the picture. What is there for the same is not computed again, so that a
new variant costs only its own pictures.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.background_logits import PROBED, keys_to_keep
from pipeline.evaluate.prediction_files import (
    ModelMetadata,
    prediction_file,
    predictions_of,
    tested_keys,
)
from pipeline.evaluate.result_files import PREDICTION_SCHEMA
from pipeline.evaluate.work import ModelWork, NoteDone, UnitOutput
from pipeline.runtime.counters import count
from pipeline.storage.state_files import read_intact, read_table
from pipeline.storage.store import FileDigest, Store
from transforms.scoring import LABEL_RULES, PAPER_RULE, labels_of_outputs

if TYPE_CHECKING:
    import torch

PART_SECONDS = 3.0
"""After as much work on a shard, what is done of it is written, in case of a kill."""
_TABLES_WAITING = 2
"""Batches whose tables are not made yet."""
_COLUMNS = ("key", "label", "fg_key", "bg_key")


@dataclasses.dataclass(frozen=True)
class ShardPictures:
    """Pictures of a variant on a shard: a part (`pipeline.models.loader.Part`), whose rows have the
    columns key, label, fg_key and bg_key.

    Attributes:
      dataset: that they are of.
      split, shard, variant: where they lie in it.
      keys: of those images that are wanted, None for all.
    """

    dataset: Dataset
    split: str
    shard: int
    variant: str
    keys: frozenset[str] | None = None

    @property
    def name(self) -> str:
        """As `Part.name`."""
        return fingerprint(
            [file.sha256 for file in self.files], None if self.keys is None else sorted(self.keys)
        )

    @property
    def count(self) -> int:
        """As `Part.count`."""
        return (
            sum(file.samples or 0 for file in self.files) if self.keys is None else len(self.keys)
        )

    @property
    def files(self) -> list[FileDigest]:
        """The file that they lie in, none where a shard is empty."""
        return self.dataset.shard_files(self.split, self.shard, (self.variant,))

    def tables(self, columns: tuple[str, ...]) -> Generator[pa.Table, None, None]:
        """As `Part.tables`."""
        wanted = None if self.keys is None else pa.array(sorted(self.keys), pa.string())
        tables = self.dataset.tables(self.split, self.shard, self.variant, (*_COLUMNS, *columns))
        with contextlib.closing(tables):
            for table in tables:
                yield table if wanted is None else table.filter(pc.is_in(table["key"], wanted))


class ShownBatch(Protocol):
    """A batch as it was shown to a model."""

    @property
    def part(self) -> ShardPictures:
        """What it is of."""

    @property
    def rows(self) -> pa.Table:
        """What the part says of its pictures."""

    @property
    def is_new(self) -> bool:
        """Whether its pictures had to be decoded."""


class Scorer(Protocol):
    """What gives logits: a `Predictor`, or who knows them without a forward pass.

    Attributes:
      device: that they were made on.
    """

    device: torch.device

    def logits(
        self, parts: Iterable[ShardPictures], stored: int
    ) -> Generator[tuple[ShownBatch, NDArray[np.float32]], None, None]:
        """As `Predictor.logits`."""


class PredictShards(ModelWork):
    """Predictions of a model on output shards.

    Args:
      dataset: that they are of.
      metadata: the model, and how it is run.
      store: the dataset folder that they lie in, None for that of `dataset`.
    """

    def __init__(
        self, dataset: Dataset, metadata: ModelMetadata, store: Store | None = None
    ) -> None:
        super().__init__(store or dataset.store)
        self._dataset, self._metadata = dataset, metadata
        self._known: dict[int, dict[str, str]] = {}

    def _of(self, shard: int) -> dict[str, str]:
        if shard not in self._known:
            self._known[shard] = predictions_of(self._dataset, self._metadata, shard)
        return self._known[shard]

    def path(self, unit: int) -> str:
        """As `ModelWork.path`."""
        return prediction_file(self._metadata, unit)

    def checksum(self, unit: int) -> str:
        """As `ModelWork.checksum`."""
        return fingerprint(list(self._of(unit).items()))

    def make(
        self, predictor: Scorer, units: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[UnitOutput, None, None]:
        """As `ModelWork.make`; of a file that is there, it keeps what is still of the same."""
        side = self._dataset.manifest.config.segment.image_size
        begun: collections.deque[_Shard] = collections.deque()

        def parts() -> Iterator[ShardPictures]:
            for shard in missing:
                begun.append(self._begin(shard, predictor.device.type))
                for kept in begun[-1].kept.values():
                    note(shard, 0, len(kept) // len(LABEL_RULES))
                yield from begun[-1].parts()

        with (
            contextlib.closing(predictor.logits(parts(), side)) as batches,
            # Scores and tables are made while the device works on.
            ThreadPoolExecutor(1) as pool,
        ):
            waiting: collections.deque[Future[None]] = collections.deque()
            since = time.monotonic()
            for batch, logits in batches:
                while begun[0].number != batch.part.shard:
                    yield begun.popleft().made(waiting)
                    since = time.monotonic()
                waiting.append(pool.submit(begun[0].add, batch.part.variant, batch.rows, logits))
                if len(waiting) > _TABLES_WAITING:
                    waiting.popleft().result()
                count("pictures_decoded", len(batch.rows) if batch.is_new else 0)
                note(batch.part.shard, len(batch.rows), len(batch.rows))
                if time.monotonic() - since > PART_SECONDS:
                    yield begun[0].so_far()
                    since = time.monotonic()
            while begun:
                yield begun.popleft().made(waiting)

    def _begin(self, number: int, device: str) -> _Shard:
        metadata = self._metadata
        tested = tested_keys(self._dataset, metadata, number)
        shards = self._dataset.shards(metadata["evaluation"]["split"])
        return _Shard(
            self._dataset,
            metadata,
            number,
            device,
            of=self._of(number),
            kept=self._kept(number),
            tested=tested,
            probed=keys_to_keep(tested, len(shards)),
        )

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


class _Shard:
    """Predictions of a shard, while they are made.

    Args:
      dataset: that it is of.
      metadata: the model, and how it is run.
      number: of the shard.
      device: that the model runs on.
      of: by variant, what identifies the predictions.
      kept: by variant, those that are there.
      tested: keys of the images that are tested on.
      probed: keys of the images whose logits are kept.
    """

    def __init__(
        self,
        dataset: Dataset,
        metadata: ModelMetadata,
        number: int,
        device: str,
        *,
        of: Mapping[str, str],
        kept: Mapping[str, pa.Table],
        tested: frozenset[str],
        probed: frozenset[str],
    ) -> None:
        self._dataset, self._metadata, self.number, self._device = dataset, metadata, number, device
        self._of, self.kept, self._tested = of, kept, tested
        self._probed = pa.array(sorted(probed), pa.string())
        self._outputs = labels_of_outputs(metadata["num_outputs"], dataset.taxonomy)
        self._tables: dict[str, list[pa.Table]] = {variant: [] for variant in of}

    def parts(self) -> Iterator[ShardPictures]:
        """What is to be predicted, variant by variant: what else there is shall not change in
        which batch a picture is."""
        run = self._metadata["evaluation"]
        for variant in self._of:
            left = self._tested
            if variant in self.kept:
                # Of a run that was killed it may be the first batches alone.
                left = left.difference(self.kept[variant]["key"].to_pylist())
            if left:
                is_whole = left == self._tested and not run["holdout"]
                keys = None if is_whole else left
                yield ShardPictures(self._dataset, run["split"], self.number, variant, keys)

    def add(self, variant: str, rows: pa.Table, logits: NDArray[np.float32]) -> None:
        """Adds the predictions of a batch, under each label rule.

        Args:
          variant: of the pictures.
          rows: of `ShardPictures`, n.
          logits: (n, outputs).
        """
        labels = rows["label"].to_numpy()
        no_logits = pa.nulls(len(rows), PREDICTION_SCHEMA.field("logits").type)
        same = {
            "model": self._metadata["model"],
            "variant": variant,
            "of": self._of[variant],
            "device": self._device,
        }
        tables = []
        for rule, score in LABEL_RULES.items():
            scores = score(logits, labels, self._outputs)
            columns = {
                **{name: pa.repeat(value, len(rows)) for name, value in same.items()},
                "label_rule": pa.repeat(rule, len(rows)),
                **{name: rows[name] for name in _COLUMNS},
                "prediction": scores.prediction,
                "output": scores.output,
                "correct": scores.prediction == labels,
                "top1_score": scores.top1,
                "true_score": scores.true,
                "logits": no_logits,
            }
            if rule == PAPER_RULE and variant == PROBED:
                is_kept = pc.is_in(rows["key"], self._probed).to_pylist()
                kept = [row if keep else None for row, keep in zip(logits, is_kept, strict=True)]
                columns["logits"] = pa.array(kept, no_logits.type)
            arrays = [_as(columns[field.name], field.type) for field in PREDICTION_SCHEMA]
            tables.append(pa.Table.from_arrays(arrays, schema=PREDICTION_SCHEMA))
        self._tables[variant] += tables

    def made(self, waiting: Iterable[Future[None]]) -> UnitOutput:
        """The whole shard, when what is waited for is done."""
        for adding in waiting:
            adding.result()
        return UnitOutput(self.number, self._joined())

    def so_far(self) -> UnitOutput:
        """What there is of the shard."""
        return UnitOutput(self.number, self._joined(), is_whole=False)

    def _joined(self) -> pa.Table:
        tables = [PREDICTION_SCHEMA.empty_table()]
        for variant, new in self._tables.items():
            tables += [self.kept[variant]] if variant in self.kept else []
            tables += new
        return _joined(tables)


def _as(values: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Values as an Arrow array of a type."""
    is_arrow = isinstance(values, pa.Array | pa.ChunkedArray)
    return (values if is_arrow else pa.array(values)).cast(kind)


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
