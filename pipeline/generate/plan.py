"""Plan: selects the images of a split, and pairs foregrounds with backgrounds.

Planning reads no images except scenes, only the records, a few at a time, and only the columns that
it needs. The plan of a split is one file with a row for each accepted image, which every worker
reads. The pairs are drawn later: a worker that composes a shard draws the backgrounds of that
shard's images.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.config import ComposeConfig
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    Record,
    layer_record,
    layer_tar,
    read_small,
)
from pipeline.errors import JobError
from pipeline.generate.origin import JobStep
from pipeline.generate.scenes import examine_scenes
from pipeline.generate.shard_elements import (
    SOURCE_SCHEMA,
    OutputShard,
    SourceShard,
    SplitTotals,
    unpack_sources,
)
from pipeline.runtime.progress import timed
from pipeline.storage.interface import read_ahead
from pipeline.storage.state_files import parquet_writer, parse_parquet, read_table
from pipeline.storage.store import HashingFile, Store
from transforms.pairing import NO_PARTNER, Pool, background_hashes, pair
from transforms.selection import has_partners, select
from transforms.variants import VariantName, filled_bases

_SHARDS_AT_ONCE = 1024
"""Number of source shards whose rows are gathered in one table."""

_COLUMNS = (
    *("key", "label", "wnid", "layer_digest", "only_bg_t_offset", "only_bg_t_length"),
    *("group", "object"),
)
"""Columns of a record that every plan holds."""
_LAYER_COLUMNS = ("image_offset", "image_length", "mask_offset", "mask_length", "box")
"""Further columns of a record, which a plan holds only if a rendering fills backgrounds."""


def _columns(config: ComposeConfig) -> tuple[str, ...]:
    """Returns the columns of a record that a plan holds."""
    return (*_COLUMNS, *(_LAYER_COLUMNS if filled_bases(config.composed) else ()))


def _schema(columns: Sequence[str]) -> pa.Schema:
    """Returns the columns of a plan without those that `_decide` adds."""
    return pa.schema(
        [
            *map(RECORD_SCHEMA.field, columns),
            *SOURCE_SCHEMA,
            pa.field("tar", pa.dictionary(pa.int32(), pa.string())),
        ]
    )


def select_images(
    keys: pa.Array,
    labels: NDArray[np.int64],
    config: ComposeConfig,
    groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Decides which of the n accepted images of a split make up the dataset.

    Args:
      keys: (n,) strings, keys of the images.
      labels: (n,) int64, labels of the images.
      groups: (n,) int64 from `group_numbers`, None without groups.

    Returns:
      (whether each image is selected, whether each was left out because no other image can give it
        a background), (n,) bool each. Images without such a partner are removed before classes are
        balanced, so that a class of one image does not shrink all other classes, and once more
        after it, because balancing may remove the last partner of an image.
    """

    def partners(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return has_partners(
            labels[rows],
            mixed={name.base for name in config.mixed},
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


@dataclasses.dataclass(frozen=True)
class PlannedImage:
    """An accepted image, as a plan knows it; most attributes are columns of its record.

    Attributes:
      no_background: whether it was left out because no other image can give it a background.
      tar: current path of the tar of its layer, None if the layer is cut again.
      source, annotation, mask: locations of its files as bytes, None if its layer is in a tar.
      image_offset, image_length, mask_offset, mask_length, box: None unless a rendering fills
        backgrounds.
    """

    key: str
    label: int
    wnid: str | None
    layer_digest: str
    object: int | None
    selected: bool
    no_background: bool
    tar: str | None
    only_bg_t_offset: int
    only_bg_t_length: int
    source: bytes
    annotation: bytes | None
    mask: bytes | None
    image_offset: int | None = None
    image_length: int | None = None
    mask_offset: int | None = None
    mask_length: int | None = None
    box: list[int] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The n accepted images of a split.

    >>> images = {"key": ["cat_1", "cat_2", "dog_1"], "label": [0, 0, 1], "by_key": [0, 1, 2]}
    >>> hashes = pa.array([7, 8, 9], pa.uint64())
    >>> table = pa.table({**images, "selected": [True, False, True], "hash": hashes})
    >>> plan = Plan.from_table(table, ComposeConfig())
    >>> plan.rows, plan.pool.members  # cat_1 and dog_1, by their labels.
    (array([0, 2]), {0: array([0]), 1: array([1])})

    Attributes:
      table: n rows in order of the source shards, with the columns of `_schema`, `selected`,
        `no_background`, `hash`, and `group_number` if there are groups.
      keys: column `key` as one Arrow array; Python strings would take ten times the memory.
      rows: position in `table` of each image of the pool, ascending.
    """

    table: pa.Table
    keys: pa.Array
    pool: Pool
    rows: NDArray[np.int64]
    config: ComposeConfig

    @classmethod
    def from_table(cls, table: pa.Table, config: ComposeConfig) -> Plan:
        """Builds a plan from the table that `PlanSplit` wrote.

        It adds about 50 bytes of memory for each image, and copies no text but the keys.
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
        return cls(table.drop_columns("by_key"), table["key"].combine_chunks(), pool, rows, config)

    def find(self, keys: list[str]) -> list[PlannedImage]:
        """Returns the accepted images with these keys. Raises JobError if the plan lacks one."""
        positions = self._positions(keys).tolist()
        images = self._images(positions)
        return [images[position] for position in positions]

    def _positions(self, keys: list[str]) -> NDArray[np.int64]:
        wanted = pc.index_in(self.keys, value_set=pa.array(keys, pa.string()))
        rows = np.flatnonzero(wanted.is_valid())
        positions = np.full(len(keys), -1, np.int64)
        positions[wanted.take(pa.array(rows)).to_numpy()] = rows
        missing = np.flatnonzero(positions < 0)
        if len(missing):
            raise JobError(f"{keys[missing[0]]} is accepted and not in the plan: this is a bug")
        return positions

    def _images(self, positions: Iterable[int]) -> dict[int, PlannedImage]:
        table = self.table.select(
            [f.name for f in dataclasses.fields(PlannedImage) if f.name in self.table.column_names]
        )
        return {
            position: PlannedImage(**table.slice(position, 1).to_pylist()[0])
            for position in set(positions)
        }

    def backgrounds(
        self, keys: list[str], names: Sequence[VariantName] = ()
    ) -> dict[VariantName, list[PlannedImage]]:
        """Draws a background for each selected key, for each replicate of each mixed variant.

        `names` are the only replicates to draw for; empty for those of the configuration.
        Backgrounds are in the order of `keys`. Raises JobError if an image has no partner, which
        would be a bug, since `select_images` drops such images.
        """
        foregrounds = np.searchsorted(self.rows, self._positions(keys))
        backgrounds = {}
        for name in names or self.config.mixed:
            drawn = pair(
                self.pool,
                foregrounds,
                keys,
                name,
                seed=self.config.seed,
                own_background=self.config.own_background,
                mixed_rand=self.config.mixed_rand,
            )
            if (drawn == NO_PARTNER).any():
                raise JobError(f"a selected image has no {name} partner: this is a bug")
            backgrounds[name] = self.rows[drawn].tolist()
        images = self._images(row for drawn in backgrounds.values() for row in drawn)
        return {name: [images[n] for n in column] for name, column in backgrounds.items()}


def group_numbers(column: pa.Array) -> NDArray[np.int64] | None:
    """Returns each image's group number, (n,) int64, its own if in none; None without groups."""
    if column.null_count == len(column):
        return None
    groups = column.dictionary_encode()
    unique = len(groups.dictionary) + np.arange(len(column))
    return np.where(groups.indices.is_null(), unique, groups.indices.fill_null(0))


def _accepted(store: Store, columns: Sequence[str], shard: SourceShard) -> pa.Table:
    """Reads the accepted images of a source shard, as a table with `_schema(columns)`."""
    read = functools.partial(read_small, columns=[*columns, "status"])
    table = parse_parquet(store, shard.record.path, read)
    table = table.filter(pc.equal(table["status"], ACCEPTED)).select(list(columns))
    files = (
        unpack_sources(shard.sources).columns
        if shard.sources
        else [pa.nulls(len(table), field.type) for field in SOURCE_SCHEMA]
    )
    tar = pa.array([shard.tar] * len(table), pa.string()).dictionary_encode()
    return pa.table([*table.columns, *files, tar], _schema(columns))


def _batches(
    store: Store, columns: Sequence[str], shards: Sequence[SourceShard]
) -> Iterator[pa.Table]:
    """Yields the accepted images in tables of many shards, as more tables take more memory."""
    tables, read = [], functools.partial(_accepted, store, columns)
    for shard, table in read_ahead(read, shards, store.files.requests_at_once):
        tables.append(table)
        if len(tables) == _SHARDS_AT_ONCE or shard is shards[-1]:
            yield pa.concat_tables(tables).unify_dictionaries().combine_chunks()
            tables = []


class PlanSplit(JobStep):
    """(split, all its segmented SourceShards) -> OutputShards; writes the split's plan.

    It also checks that all shards and images of the split have arrived, and examines the scenes.
    """

    @timed("plan")
    def process(self, element: tuple[str, Iterable[SourceShard]]) -> list[OutputShard]:
        split, segmented = element
        # Sorted, because the plan holds the rows of the source shards in order of their numbers.
        shards = sorted(segmented, key=lambda shard: shard.shard)
        totals = shards[0].totals
        images = sum(shard.segmented for shard in shards)
        totals.check_complete([s.shard for s in shards], totals.counts.source, images)
        plan = self.outputs.staged(f"plan/{split}.parquet")
        with self.outputs.store.create(plan) as file:
            self._write(file, shards)
        scenes, config = None, self.config
        if self.job.scenes is not None and config.compose.backgrounds is not None:
            summary = config.compose.backgrounds
            scenes = examine_scenes(self.job.scenes, summary, config.segment, self.outputs)
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
        """Writes the plan; memory holds only what the selection needs, the rest waits on disk."""
        columns = _columns(self.config.compose)
        with tempfile.TemporaryFile() as spool:
            needed = []
            with pa.ipc.new_stream(spool, _schema(columns)) as stream:
                for batch in _batches(self.outputs.store, columns, shards):
                    stream.write_table(batch)
                    needed.append(batch.select(["key", "label", "group"]))
            decisions = _decide(pa.concat_tables(needed), self.config.compose)
            del needed
            spool.seek(0)
            schema = pa.schema([*_schema(columns), *decisions.schema])
            with parquet_writer(file, schema, compression="zstd") as writer:
                first = 0
                for rows in pa.ipc.open_stream(spool):
                    decided = decisions.slice(first, len(rows)).columns
                    writer.write_table(pa.table([*rows.columns, *decided], schema))
                    first += len(rows)


def _decide(table: pa.Table, config: ComposeConfig) -> pa.Table:
    """Computes the columns of a plan that depend on the whole split, from key, label and group."""
    keys, labels, groups = (column.combine_chunks() for column in table.columns)
    numbers = group_numbers(groups)
    labels = labels.to_numpy(zero_copy_only=False).astype(np.int64)
    selected, no_background = select_images(keys, labels, config, numbers)
    columns = {
        "by_key": pc.sort_indices(keys).cast(pa.int32()),
        "selected": selected,
        "no_background": no_background,
        # Computed here once, so that not every worker has to; of one string at a time, as all would
        # take much memory.
        "hash": background_hashes((key.as_py() for key in keys), config.seed),
        **({} if numbers is None else {"group_number": numbers}),
    }
    return pa.table(columns)


def plan_of_dataset(dataset: Dataset, split: str, config: ComposeConfig, keys: list[str]) -> Plan:
    """Plans pairs among some images of a finished dataset that keeps its layers, from its records.

    Keys without a background among them are not selected.
    """
    totals = SplitTotals(split, dataset.manifest.shards[split], 0, 0, 0)
    shards = [
        SourceShard(totals, n, record=Record("", layer_record(split, n), locations={tar: tar}))
        for n in range(totals.counts.source)
        for tar in [layer_tar(split, n)]
    ]
    table = (
        pa.concat_tables(_batches(dataset.store, _columns(config), shards))
        .filter(pc.field("key").isin(pa.array(keys, pa.string())))
        .combine_chunks()
    )
    decided = _decide(
        table.select(["key", "label", "group"]), dataclasses.replace(config, per_class="all")
    )
    return Plan.from_table(
        pa.table({name: each[name] for each in (table, decided) for name in each.column_names}),
        config,
    )


@functools.lru_cache(maxsize=4)
def load_plan(store: Store, path: str, config: ComposeConfig, digest: str) -> Plan:
    """Reads a plan, once in each process; the `digest` makes it read a rewritten file again."""
    return Plan.from_table(read_table(store, path), config)
