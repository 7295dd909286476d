"""Pool: the backgrounds of a whole split, among which those of mixed pictures are looked for."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.records import ACCEPTED, Staging, read_rows
from pipeline.generate.plan import check_complete
from pipeline.released.archive import Place
from pipeline.released.examine import ExaminedShard
from pipeline.released.listing import ReleasedShard
from pipeline.released.masks import npy_bytes
from pipeline.runner.counters import timed
from pipeline.storage.store import Store


@dataclasses.dataclass(frozen=True)
class PooledShard:
    """A shard with the backgrounds of its split.

    Attributes:
      shard, record: of `ExaminedShard`.
      pool: where the split's backgrounds lie, None if there are none.
      pool_digest: identifies their content.
    """

    shard: ReleasedShard
    record: str
    pool: str | None
    pool_digest: str


class PoolSplit(beam.DoFn):
    """(split, all its ExaminedShards) -> PooledShards; writes the split's backgrounds."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    def process(self, element: tuple[str, Iterable[ExaminedShard]]) -> Iterator[PooledShard]:
        split, examined = element
        with timed("examine"):
            pooled = self._pool(split, sorted(examined, key=lambda shard: shard.shard.shard))
        yield from pooled

    def _pool(self, split: str, examined: list[ExaminedShard]) -> list[PooledShard]:
        store = self._staging.store
        totals = examined[0].shard.totals
        numbers = [shard.shard.shard for shard in examined]
        listed = sum(len(shard.shard.images) for shard in examined)
        check_complete(split, numbers, totals.counts.output, listed, totals.listed)
        pool, rows = None, []
        if examined[0].backgrounds is not None:
            blocks = []
            for shard in examined:
                found = [r for r in read_rows(store, shard.record) if r["status"] == ACCEPTED]
                if not found:
                    continue
                places = {i.stem: i.files["only_bg_t"].place for i in shard.shard.images}
                rows += [_pool_row(row, places[row["key"]]) for row in found]
                assert shard.backgrounds is not None
                blocks.append(np.load(io.BytesIO(store.read(shard.backgrounds))))
            if rows:
                pool = self._staging.staged(f"pool/{split}")
                with store.create(f"{pool}.npy") as file:
                    file.write(npy_bytes(np.concatenate(blocks)))
                with store.create(f"{pool}.parquet") as file:
                    pq.write_table(pa.Table.from_pylist(rows), file)
        digest = fingerprint([[row["key"], row["background"]] for row in rows])
        return [PooledShard(shard.shard, shard.record, pool, digest) for shard in examined]


def _pool_row(row: dict[str, Any], place: Place) -> dict[str, Any]:
    names = ("key", "wnid", "label", "background")
    return {name: row[name] for name in names} | dataclasses.asdict(place)


@dataclasses.dataclass(frozen=True, eq=False)
class BackgroundPool:
    """The tiled backgrounds of a split.

    Attributes:
      rows: key, wnid, label and place of each.
      described: (N, B, 3) uint8 of `describe`.
      position: of each key.
    """

    rows: list[dict[str, Any]]
    described: NDArray[np.uint8]
    position: dict[str, int]

    def place(self, position: int) -> Place:
        """Where a background lies."""
        row = self.rows[position]
        return Place(**{field.name: row[field.name] for field in dataclasses.fields(Place)})


@functools.lru_cache(maxsize=2)
def load_pool(store: Store, path: str, digest: str) -> BackgroundPool:
    """Reads a pool once for each worker process; `digest` tells a rewritten file apart."""
    del digest
    rows = read_rows(store, f"{path}.parquet")
    described = np.load(io.BytesIO(store.read(f"{path}.npy")))
    return BackgroundPool(rows, described, {row["key"]: i for i, row in enumerate(rows)})
