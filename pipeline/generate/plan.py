"""Plan: select the images of a split, and pair foregrounds with backgrounds.

Planning looks at records only. The plan of a split is one file, a row for each accepted
image, which every worker reads; pairs are drawn where they are needed, shard by shard.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.config import ComposeConfig, SegmentConfig
from pipeline.dataset.records import Staging
from pipeline.errors import JobError
from pipeline.generate.scenes import examine_scenes
from pipeline.generate.shards import OutputShard, SourceShard
from pipeline.runtime.counters import timed
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.pairing import NO_PARTNER, Pool, background_hashes, group_numbers, pair
from transforms.selection import has_partners, select
from transforms.variants import MIXED, split_replicate, with_replicates

_AT_ONCE = 65_536
"""Keys that are strings of Python at a time."""


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
      groups: (n,) int64 of `group_numbers`, None without groups.

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
      table: columns of `CANDIDATE_SCHEMA`, `tar` (where the layers lie now), `selected`,
        `no_background`, `hash`, and `group_number` if there are groups; in order of the key.
      keys: of the table: a key is looked up where it lies, as all of them would take ten times
        the memory as strings of Python.
      pool: the selected images.
      rows: position in `table` of each image of the pool, ascending.
      config: of the pairing.
    """

    table: pa.Table
    keys: pa.Array
    pool: Pool
    rows: NDArray[np.int64]
    config: ComposeConfig

    @classmethod
    def of(cls, table: pa.Table, config: ComposeConfig) -> Plan:
        """Builds the pool of a planned table.

        A worker holds some 50 bytes of each image beside the table: no text but the keys'.
        """
        rows = np.flatnonzero(table["selected"].to_numpy())
        groups = "group_number" in table.column_names
        pool = Pool.of_hashes(
            table["label"].to_numpy()[rows].astype(np.int64),
            table["hash"].to_numpy()[rows],
            groups=table["group_number"].to_numpy()[rows] if groups else None,
        )
        return cls(table, table["key"].combine_chunks(), pool, rows, config)

    def place(self, key: str) -> int:
        """Position in `table` of an accepted key. Raises JobError if it is none."""
        place = bisect.bisect_left(self.keys, key, key=pa.StringScalar.as_py)
        if place == len(self.keys) or self.keys[place].as_py() != key:
            raise JobError(f"{key} is accepted and not in the plan: this is a bug")
        return place

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


def _strings(table: pa.Table) -> Iterator[str]:
    """The keys of a table, of which few are strings of Python at a time."""
    for batch in table.to_batches(max_chunksize=_AT_ONCE):
        yield from batch["key"].to_pylist()


def _groups(table: pa.Table) -> NDArray[np.int64] | None:
    """Numbers of the groups of a planned table, None without any."""
    column = table["group"]
    if column.null_count == len(column):
        return None
    return group_numbers(table["key"].to_pylist(), column.to_pylist())


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
        shards = sorted(segmented, key=lambda shard: shard.shard)
        totals = shards[0].totals
        images = sum(shard.segmented for shard in shards)
        totals.check_complete([s.shard for s in shards], totals.counts.source, images)
        plan = self._staging.staged(f"plan/{split}.parquet")
        with self._staging.store.create(plan) as file:
            pq.write_table(self._table(shards), file, compression="zstd")
        scenes = None
        if self._scenes is not None and self._config.backgrounds is not None:
            about = self._config.backgrounds
            scenes = examine_scenes(self._scenes, about, self._segment, self._staging)
        return [
            OutputShard(
                totals=totals,
                shard=output,
                plan=plan,
                plan_digest=file.sha256,
                records=tuple(
                    record for n in totals.counts.sources_of(output) for record in shards[n].records
                ),
                scenes=scenes,
            )
            for output in range(totals.counts.output)
        ]

    def _table(self, shards: list[SourceShard]) -> pa.Table:
        tables = []
        for shard in shards:
            table = pa.ipc.open_stream(shard.candidates).read_all()
            tar = pa.array([shard.tar] * len(table), pa.string()).dictionary_encode()
            tables.append(table.append_column("tar", tar))
        table = pa.concat_tables(tables).unify_dictionaries().sort_by("key").combine_chunks()
        labels = table["label"].to_numpy().astype(np.int64)
        keys, groups = table["key"].combine_chunks(), _groups(table)
        selected, lonely = select_images(keys, labels, self._config, groups)
        added = {
            "selected": selected,
            "no_background": lonely,
            # Here once, and not again by every worker.
            "hash": background_hashes(_strings(table), self._config.seed),
            **({} if groups is None else {"group_number": groups}),
        }
        for name, values in added.items():
            table = table.append_column(name, pa.array(values))
        return table


@functools.lru_cache(maxsize=4)
def load_plan(store: Store, path: str, config: ComposeConfig, digest: str) -> Plan:
    """Reads a plan once for each worker process; `digest` tells a rewritten file apart."""
    del digest
    return Plan.of(read_table(store, path), config)
