"""Plan: select the images of a split, and pair foregrounds with backgrounds.

Planning looks at records only, one after the other, and at the columns that it needs. The plan
of a split is one file, a row for each accepted image, which every worker reads; pairs are drawn
where they are needed, shard by shard.
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
"""Keys that are strings of Python at a time."""

_SHARDS_AT_ONCE = 1024
"""Source shards whose rows are in one table."""

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
"""Columns of a record that a plan has, under other names: where in the tar the tiled background
lies."""
_SCHEMA = pa.schema(
    [
        *(RECORD_SCHEMA.field(n).with_name(name) for n, name in _COLUMNS.items()),
        *SOURCE_SCHEMA,
        pa.field("tar", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""Columns of a plan before anything is decided."""


def mixed_variants(config: ComposeConfig) -> tuple[str, ...]:
    """The variants to compose on backgrounds of the dataset, without replicates."""
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
      groups: (n,) int64 of `_groups`, None without groups.

    Returns:
      (selected, no_background), (n,) bool each. Balancing comes after the images without
      any partner have left, so that a class of one image does not shrink all others.
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
    left = np.flatnonzero(selected)
    if config.per_class != "all":
        names = keys.take(pa.array(left)).to_pylist()
        left = left[select(names, labels[left], per_class=config.per_class, seed=config.seed)]
    lonely = ~partners(left)
    selected[:] = False
    selected[left[~lonely]] = True
    no_background[left[lonely]] = True
    return selected, no_background


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The accepted images of a split.

    Attributes:
      table: columns of `_SCHEMA` (`tar` is where the layers lie now), `selected`,
        `no_background`, `hash`, and `group_number` if there are groups; in order of the source
        shards.
      keys: of the table: a key is looked up where it lies, as all of them would take ten times
        the memory as strings of Python.
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

        A worker holds some 50 bytes of each image beside the table: no text but the keys'.
        """
        selected, by_key = table["selected"].to_numpy(), table["by_key"].to_numpy()
        rows = np.flatnonzero(selected)
        groups = "group_number" in table.column_names
        pool = Pool.from_hashes(
            table["label"].to_numpy()[rows].astype(np.int64),
            table["hash"].to_numpy()[rows],
            groups=table["group_number"].to_numpy()[rows] if groups else None,
            order=np.searchsorted(rows, by_key[selected[by_key]]),
        )
        return cls(
            table.drop_columns("by_key"), table["key"].combine_chunks(), by_key, pool, rows, config
        )

    def place(self, key: str) -> int:
        """Position in `table` of an accepted key. Raises JobError if it is none."""
        at = bisect.bisect_left(self.by_key, key, key=lambda place: self.keys[int(place)].as_py())
        if at < len(self.keys) and self.keys[place := int(self.by_key[at])].as_py() == key:
            return place
        raise JobError(f"{key} is accepted and not in the plan: this is a bug")

    def row(self, place: int) -> dict[str, Any]:
        """A row of the table."""
        row: dict[str, Any] = self.table.slice(place, 1).to_pylist()[0]
        return row

    def value(self, column: str, place: int) -> Any:
        """A value of the table."""
        return self.table[column][place].as_py()

    def backgrounds(self, keys: list[str]) -> dict[str, NDArray[np.int64]]:
        """Background of each selected key in each replicate of each mixed variant, as
        positions in `table`.

        Raises:
          JobError: an image has no partner, which selection rules out.
        """
        places = np.asarray([self.place(key) for key in keys], np.int64)
        foregrounds = np.searchsorted(self.rows, places)
        found = {}
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
            found[name] = self.rows[drawn]
        return found


def _strings(keys: pa.Array) -> Iterator[str]:
    """Keys, of which few are strings of Python at a time."""
    for first in range(0, len(keys), _AT_ONCE):
        yield from keys.slice(first, _AT_ONCE).to_pylist()


def _groups(column: pa.Array) -> NDArray[np.int64] | None:
    """Numbers that tell groups apart, None without any; an image without one is a group of its
    own."""
    if column.null_count == len(column):
        return None
    groups = column.dictionary_encode()
    own = len(groups.dictionary) + np.arange(len(column))
    return np.where(groups.indices.is_null(), own, groups.indices.fill_null(0))


def _accepted(store: Store, shard: SourceShard) -> pa.Table:
    """The accepted images of a source shard: columns of its record, and what they are cut from."""

    def read(source: Any) -> pa.Table:
        # Of a small file, half of the time that `read_table` takes.
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
    """`_accepted` of all source shards, so many of them at a time that a table of its own for
    each does not take more than what is in it."""
    ahead = REQUESTS_IN_FLIGHT if store.is_remote else 0
    few = []
    for shard, table in read_ahead(functools.partial(_accepted, store), shards, ahead):
        few.append(table)
        if len(few) == _SHARDS_AT_ONCE or shard is shards[-1]:
            yield pa.concat_tables(few).unify_dictionaries().combine_chunks()
            few = []


class PlanSplit(beam.DoFn):
    """(split, all its SourceShards, segmented) -> OutputShards; writes the split's plan.

    It also checks that nothing was lost on the way: as many shards as the split has, and
    as many images as it lists.

    Args:
      config: of selection and pairing.
      staging: where new output shards go.
      segment: of the layers.
      scenes: folder of scenes, if the configuration has some.
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
        # What they are of is read one after the other.
        shards = sorted(segmented, key=lambda shard: shard.shard)
        totals = shards[0].totals
        images = sum(shard.segmented for shard in shards)
        totals.check_complete([s.shard for s in shards], totals.counts.source, images)
        plan = self._staging.staged(f"plan/{split}.parquet")
        with self._staging.store.create(plan) as file:
            self._write(file, shards)
        scenes = None
        if self._scenes is not None and self._config.backgrounds is not None:
            about = self._config.backgrounds
            scenes = examine_scenes(self._scenes, about, self._segment, self._staging)
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
        """Writes the plan. What no decision needs waits on the disk until it is made."""
        with tempfile.TemporaryFile() as spool:
            kept = []
            with pa.ipc.new_stream(spool, _SCHEMA) as stream:
                for batch in _batches(self._staging.store, shards):
                    stream.write_table(batch)
                    kept.append(batch.select(["key", "label", "group"]))
            decided = self._decide(pa.concat_tables(kept))
            del kept
            spool.seek(0)
            schema = pa.schema([*_SCHEMA, *decided.schema])
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                first = 0
                for rows in pa.ipc.open_stream(spool):
                    columns = decided.slice(first, len(rows)).columns
                    writer.write_table(pa.table([*rows.columns, *columns], schema))
                    first += len(rows)

    def _decide(self, table: pa.Table) -> pa.Table:
        """Columns of a plan that depend on the whole of a split, of its keys, labels and groups."""
        keys, labels, groups = (column.combine_chunks() for column in table.columns)
        numbers = _groups(groups)
        labels = labels.to_numpy(zero_copy_only=False).astype(np.int64)
        selected, lonely = select_images(keys, labels, self._config, numbers)
        columns = {
            "by_key": pc.sort_indices(keys).cast(pa.int32()),
            "selected": selected,
            "no_background": lonely,
            # Here once, and not again by every worker.
            "hash": background_hashes(_strings(keys), self._config.seed),
            **({} if numbers is None else {"group_number": numbers}),
        }
        return pa.table(columns)


@functools.lru_cache(maxsize=4)
def load_plan(store: Store, path: str, config: ComposeConfig, digest: str) -> Plan:
    """Reads a plan once for each worker process; `digest` tells a rewritten file apart."""
    del digest
    return Plan.from_table(read_table(store, path), config)
