"""Plan: selects the images of a split, and pairs foregrounds with backgrounds.

Planning reads records only, one after the other, and only the columns that it needs. The plan of a
split is one file with a row for each accepted image, which every worker reads. Pairs are drawn
later, by the workers, for one shard at a time.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.config import ComposeConfig, SegmentConfig
from pipeline.dataset.records import ACCEPTED, RECORD_SCHEMA, Staging
from pipeline.errors import JobError
from pipeline.generate.scenes import examine_scenes
from pipeline.generate.shard_elements import SOURCE_SCHEMA, OutputShard, SourceShard, unpack_sources
from pipeline.runtime.counters import timed
from pipeline.storage.parallel import REQUESTS_IN_FLIGHT, read_ahead
from pipeline.storage.state_files import parse_parquet, read_table
from pipeline.storage.store import HashingFile, Store
from transforms.pairing import NO_PARTNER, Pool, background_hashes, pair
from transforms.selection import has_partners, select
from transforms.variants import MIXED, split_replicate, with_replicates

_AT_ONCE = 65_536
"""Keys that exist as Python strings at a time."""

_SHARDS_AT_ONCE = 1024
"""Source shards whose rows are gathered in one table."""

_COLUMNS = {
    "key": "key",
    "label": "label",
    "wnid": "wnid",
    "layer_digest": "layer_digest",
    "only_bg_t_offset": "offset",
    "only_bg_t_length": "length",
    "group": "group",
    "object": "object",
}
"""Columns of a record that a plan has, and their names there. Offset and length are the position of
the tiled background in the tar."""
_SCHEMA = pa.schema(
    [
        *(RECORD_SCHEMA.field(n).with_name(name) for n, name in _COLUMNS.items()),
        *SOURCE_SCHEMA,
        pa.field("tar", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""Columns of a plan before the selection."""


def mixed_variants(config: ComposeConfig) -> tuple[str, ...]:
    """Returns the variants that are composed on backgrounds of the dataset, without replicates."""
    return tuple(name for name in config.variants if name in MIXED)


def select_images(
    keys: pa.Array,
    labels: NDArray[np.int64],
    config: ComposeConfig,
    groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Decides which accepted images of a split make up the dataset.

    Args:
      keys: (n,) strings, keys of the accepted images.
      labels: (n,) int64.
      config: of selection and pairing.
      groups: (n,) int64 from `_group_numbers`, None without groups.

    Returns:
      (selected, no_background), (n,) bool each. Images without any partner are removed before
      classes are balanced, so that a class of one image does not shrink all others.
    """

    def partners(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return has_partners(
            labels[rows],
            mixed=mixed_variants(config),
            own_background=config.own_background,
            mixed_rand=config.mixed_rand,
            groups=None if groups is None else groups[rows],
        )

    selected = partners(np.arange(len(keys)))
    no_background = ~selected
    rows = np.flatnonzero(selected)
    if config.per_class != "all":
        names = keys.take(pa.array(rows)).to_pylist()
        rows = rows[select(names, labels[rows], per_class=config.per_class, seed=config.seed)]
    is_alone = ~partners(rows)
    selected[:] = False
    selected[rows[~is_alone]] = True
    no_background[rows[is_alone]] = True
    return selected, no_background


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The accepted images of a split.

    Attributes:
      table: columns of `_SCHEMA` (`tar` is the current path of the layers), `selected`,
        `no_background`, `hash`, and `group_number` if there are groups; in order of the source
        shards.
      keys: of the table, as an Arrow array, because Python strings would take ten times the
        memory.
      by_key: (n,) positions in `table` in order of the keys.
      pool: the selected images.
      rows: position in `table` of each image of the pool, ascending.
      config: of the pairing.
    """

    table: pa.Table
    keys: pa.Array
    by_key: NDArray[np.int32]
    pool: Pool
    rows: NDArray[np.int64]
    config: ComposeConfig

    @classmethod
    def from_table(cls, table: pa.Table, config: ComposeConfig) -> Plan:
        """Builds the pool of a planned table.

        Beside the table, a worker holds about 50 bytes for each image, and no text but the keys.
        """
        selected, by_key = table["selected"].to_numpy(), table["by_key"].to_numpy()
        rows = np.flatnonzero(selected)
        has_groups = "group_number" in table.column_names
        pool = Pool.from_hashes(
            table["label"].to_numpy()[rows].astype(np.int64),
            table["hash"].to_numpy()[rows],
            groups=table["group_number"].to_numpy()[rows] if has_groups else None,
            order=np.searchsorted(rows, by_key[selected[by_key]]),
        )
        return cls(
            table.drop_columns("by_key"), table["key"].combine_chunks(), by_key, pool, rows, config
        )

    def position(self, key: str) -> int:
        """Returns the position in `table` of an accepted key. Raises JobError for another key."""
        rank = bisect.bisect_left(self.by_key, key, key=lambda row: self.keys[int(row)].as_py())
        if rank < len(self.keys) and self.keys[row := int(self.by_key[rank])].as_py() == key:
            return row
        raise JobError(f"{key} is accepted and not in the plan: this is a bug")

    def row(self, position: int) -> dict[str, Any]:
        """Returns a row of the table."""
        row: dict[str, Any] = self.table.slice(position, 1).to_pylist()[0]
        return row

    def value(self, column: str, position: int) -> Any:
        """Returns a value of the table."""
        return self.table[column][position].as_py()

    def backgrounds(self, keys: list[str]) -> dict[str, NDArray[np.int64]]:
        """Draws the background of each selected key.

        Returns:
          Positions in `table`, by variant, for each replicate of each mixed variant.

        Raises:
          JobError: an image has no partner, which the selection rules out.
        """
        positions = np.asarray([self.position(key) for key in keys], np.int64)
        foregrounds = np.searchsorted(self.rows, positions)
        backgrounds = {}
        for name in with_replicates(mixed_variants(self.config), self.config.replicates):
            variant, replicate = split_replicate(name)
            drawn = pair(
                self.pool,
                foregrounds,
                keys,
                variant,
                seed=self.config.seed,
                replicate=replicate,
                own_background=self.config.own_background,
                mixed_rand=self.config.mixed_rand,
            )
            if (drawn == NO_PARTNER).any():
                raise JobError(f"a selected image has no {name} partner: this is a bug")
            backgrounds[name] = self.rows[drawn]
        return backgrounds


def _strings(keys: pa.Array) -> Iterator[str]:
    """Yields the keys, converting a few to Python strings at a time."""
    for first in range(0, len(keys), _AT_ONCE):
        yield from keys.slice(first, _AT_ONCE).to_pylist()


def _group_numbers(column: pa.Array) -> NDArray[np.int64] | None:
    """Numbers the groups; returns None if no image has one. An image without a group gets a number
    of its own."""
    if column.null_count == len(column):
        return None
    groups = column.dictionary_encode()
    unique = len(groups.dictionary) + np.arange(len(column))
    return np.where(groups.indices.is_null(), unique, groups.indices.fill_null(0))


def _accepted(store: Store, shard: SourceShard) -> pa.Table:
    """Reads the accepted images of a source shard: columns of its record, and paths of their
    files."""

    def read(source: Any) -> pa.Table:
        # For a small file, this takes half the time of `read_table`.
        with pq.ParquetFile(source) as file:
            return file.read([*_COLUMNS, "status"], use_threads=False)

    table = parse_parquet(store, shard.record.path, read)
    table = table.filter(pc.equal(table["status"], ACCEPTED)).select(list(_COLUMNS))
    files = [pa.nulls(len(table), field.type) for field in SOURCE_SCHEMA]
    if shard.sources:
        files = unpack_sources(shard.sources).columns
    tar = pa.array([shard.tar] * len(table), pa.string()).dictionary_encode()
    return pa.table([*table.columns, *files, tar], _SCHEMA)


def _batches(store: Store, shards: Sequence[SourceShard]) -> Iterator[pa.Table]:
    """Yields the accepted images of all source shards, in tables of many shards, because a table
    for each shard would take more memory than its rows."""
    ahead = REQUESTS_IN_FLIGHT if store.is_remote else 0
    tables = []
    for shard, table in read_ahead(functools.partial(_accepted, store), shards, ahead):
        tables.append(table)
        if len(tables) == _SHARDS_AT_ONCE or shard is shards[-1]:
            yield pa.concat_tables(tables).unify_dictionaries().combine_chunks()
            tables = []


class PlanSplit(beam.DoFn):
    """(split, all its segmented SourceShards) -> OutputShards; writes the split's plan.

    It also checks that all shards and images of the split have arrived.

    Args:
      config: of selection and pairing.
      staging: staging folder of output shards.
      segment: of the layers.
      scenes: folder of scenes, None without one.
    """

    def __init__(
        self,
        config: ComposeConfig,
        staging: Staging,
        segment: SegmentConfig,
        scenes: str | None = None,
    ) -> None:
        self._config = config
        self._staging = staging
        self._segment = segment
        self._scenes = scenes

    @timed("plan")
    def process(self, element: tuple[str, Iterable[SourceShard]]) -> list[OutputShard]:
        split, segmented = element
        # In their order, because their records are read one after the other.
        shards = sorted(segmented, key=lambda shard: shard.shard)
        totals = shards[0].totals
        images = sum(shard.segmented for shard in shards)
        totals.check_complete([s.shard for s in shards], totals.counts.source, images)
        plan = self._staging.staged(f"plan/{split}.parquet")
        with self._staging.store.create(plan) as file:
            self._write(file, shards)
        scenes = None
        if self._scenes is not None and self._config.backgrounds is not None:
            summary = self._config.backgrounds
            scenes = examine_scenes(self._scenes, summary, self._segment, self._staging)
        records = [dataclasses.replace(s.record, files=(), locations={}) for s in shards]
        return [
            OutputShard(
                totals=totals,
                shard=output,
                plan=plan,
                plan_digest=file.sha256,
                sources=tuple(records[n] for n in totals.counts.sources_of(output)),
                scenes=scenes,
            )
            for output in range(totals.counts.output)
        ]

    def _write(self, file: HashingFile, shards: Sequence[SourceShard]) -> None:
        """Writes the plan. Columns that the selection does not need are spooled to disk
        meanwhile."""
        with tempfile.TemporaryFile() as spool:
            needed = []
            with pa.ipc.new_stream(spool, _SCHEMA) as stream:
                for batch in _batches(self._staging.store, shards):
                    stream.write_table(batch)
                    needed.append(batch.select(["key", "label", "group"]))
            decisions = self._decide(pa.concat_tables(needed))
            del needed
            spool.seek(0)
            schema = pa.schema([*_SCHEMA, *decisions.schema])
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                first = 0
                for rows in pa.ipc.open_stream(spool):
                    columns = decisions.slice(first, len(rows)).columns
                    writer.write_table(pa.table([*rows.columns, *columns], schema))
                    first += len(rows)

    def _decide(self, table: pa.Table) -> pa.Table:
        """Returns the columns of a plan that depend on the keys, labels and groups of the whole
        split."""
        keys, labels, groups = (column.combine_chunks() for column in table.columns)
        numbers = _group_numbers(groups)
        labels = labels.to_numpy(zero_copy_only=False).astype(np.int64)
        selected, no_background = select_images(keys, labels, self._config, numbers)
        columns = {
            "by_key": pc.sort_indices(keys).cast(pa.int32()),
            "selected": selected,
            "no_background": no_background,
            # Once here, and not in every worker.
            "hash": background_hashes(_strings(keys), self._config.seed),
            **({} if numbers is None else {"group_number": numbers}),
        }
        return pa.table(columns)


@functools.lru_cache(maxsize=4)
def load_plan(store: Store, path: str, config: ComposeConfig, digest: str) -> Plan:
    """Reads a plan, once in each worker process; `digest` tells a rewritten file apart."""
    del digest
    return Plan.from_table(read_table(store, path), config)
