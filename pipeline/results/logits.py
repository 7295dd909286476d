"""A model's outputs on pictures of backgrounds, kept for the probe (`pipeline.results.power`).

results/<model>/logits/<split>-NNNNN.parquet lies beside the predictions of the same shard and is
identified as they are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_about, read_rows
from pipeline.dataset.shards import index_file
from pipeline.dataset.sinks import Sample
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.hashing import keyed_hashes

PROBED = "only_bg_t"
"""The variant whose outputs are kept: backgrounds, with nothing of the foreground."""
MOST = 5000
"""Pictures whose outputs are kept, at most."""

LOGITS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("logits", pa.list_(pa.float16()), nullable=False),
    ]
)
"""Columns of kept outputs; `logits` are all of the model's, half precision."""

_LARGEST = float(np.finfo(np.float16).max)


def logits_file(folder: str, split: str, shard: int) -> str:
    """Outputs of a model on an output shard, kept for the probe."""
    return f"results/{folder}/logits/{split}-{shard:05d}.parquet"


def keys_to_keep(
    dataset: Dataset,
    split: str,
    shard: int,
    tested: frozenset[str] | None = None,
    most: int = MOST,
) -> frozenset[str]:
    """Which images of an output shard the outputs of are kept.

    Shards are buckets of a hash of the key and hold about as many images each, so every shard
    keeps its share of `most`, those with the lowest keyed hashes: which ones depends on no other
    shard, so one that is unchanged keeps what it has.

    Args:
      dataset: a finished one.
      split, shard: of it.
      tested: its images that models are tested on, None for all.
      most: images of all shards together.

    Returns:
      Their keys; none if the dataset does not have the variant.
    """
    if PROBED not in dataset.variants:
        return frozenset()
    shards = dataset.manifest.shards[split].output
    rows = read_rows(dataset.store, index_file(split, shard, shards), ["key", "selected"])
    keys = [row["key"] for row in rows if row["selected"]]
    if tested is not None:
        keys = [key for key in keys if key in tested]
    return frozenset(_lowest(keys, max(1, most // shards)))


def _lowest(keys: Iterable[str], most: int) -> list[str]:
    """The keys with the lowest hashes, lowest first."""
    keys = list(keys)
    order = np.argsort(keyed_hashes(0, "power", keys), kind="stable")
    return [keys[place] for place in order[:most].tolist()]


class LogitsKeeper:
    """Keeps outputs on some pictures while a model runs over all.

    Args:
      keys: of the images whose outputs are kept.

    Attributes:
      keys: the same.
    """

    def __init__(self, keys: frozenset[str]) -> None:
        self.keys = keys
        self._kept: list[tuple[str, int, NDArray[np.float16]]] = []

    def add(self, batch: Iterable[Sample], logits: NDArray[np.float32]) -> None:
        """Looks through a batch: samples with their variant as a field, (n, k) logits."""
        for sample, row in zip(batch, logits, strict=True):
            if sample.fields["variant"] == PROBED and sample.key in self.keys:
                half = row.clip(-_LARGEST, _LARGEST).astype(np.float16)
                self._kept.append((sample.key, sample.fields["label"], half))

    def table(self) -> pa.Table:
        """What was kept, in the order of the pictures."""
        columns = zip(*self._kept, strict=True) if self._kept else ([], [], [])
        arrays = [pa.array(list(c), f.type) for c, f in zip(columns, LOGITS_SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=LOGITS_SCHEMA)


def batches_with(
    samples: Iterable[Sample], size: int, variant: str, keys: frozenset[str]
) -> Iterator[Sample]:
    """Samples of those batches that hold wanted ones, whole, so that cutting them into batches
    again gives the same.

    Args:
      samples: with their variant as a field.
      size: of a batch.
      variant, keys: what is wanted; nothing is read beyond the last one.
    """
    iterator = iter(samples)
    left = set(keys)
    while left and (batch := list(itertools.islice(iterator, size))):
        found = {s.key for s in batch if s.fields["variant"] == variant} & left
        left -= found
        if found:
            yield from batch


@dataclasses.dataclass(frozen=True, eq=False)
class KeptLogits:
    """A model's outputs on pictures of backgrounds, all shards together.

    Attributes:
      keys: (n,) of the images, sorted.
      labels: (n,) int32.
      logits: (n, k) float16.
      fingerprints: what identifies each shard's.
    """

    keys: tuple[str, ...]
    labels: NDArray[np.int32]
    logits: NDArray[np.float16]
    fingerprints: tuple[str, ...]


def read_logits(store: Store, paths: Iterable[str]) -> KeptLogits | None:
    """Reads what is kept of a model, at most `MOST` pictures. None if there is nothing."""
    tables, fingerprints = [], []
    for path in paths:
        about = read_about(store, path)
        if about is not None:
            tables.append(read_table(store, path))
            fingerprints.append(about.fingerprint)
    if not sum(table.num_rows for table in tables):
        return None
    table = pa.concat_tables([table.replace_schema_metadata() for table in tables])
    keys = table["key"].to_pylist()
    chosen = sorted(range(len(keys)), key=keys.__getitem__)
    if len(keys) > MOST:
        lowest = set(_lowest(keys, MOST))
        chosen = [place for place in chosen if keys[place] in lowest]
    logits = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return KeptLogits(
        keys=tuple(keys[place] for place in chosen),
        labels=table["label"].to_numpy()[chosen],
        logits=logits.reshape(len(keys), -1)[chosen],
        fingerprints=tuple(fingerprints),
    )
