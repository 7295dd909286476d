"""Layers that are there: shards that are up to date, and single images to copy from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.layer_files import read_parts
from pipeline.dataset.records import Record, Staging, read_metadata, read_rows, source_key
from pipeline.dataset.shards import ShardCounts, layer_record, layer_tar
from pipeline.generate.cut_source import shard_fingerprint
from pipeline.generate.shard_elements import SourceShard
from pipeline.storage.state_files import read_intact
from pipeline.storage.store import Store
from transforms.filters import Reason


def find_layers(
    staging: Staging,
    shard: SourceShard,
    digests: Sequence[str | None],
    config: SegmentConfig,
    *,
    need_files: bool,
) -> Record | None:
    """The record of a source shard whose layers are up to date, in place or staged; None if they
    are not, or if that is not known.

    Args:
      staging: where new layers go.
      shard: the source shard.
      digests: of its images, in their order; None where it is not known.
      config: of the layers.
      need_files: whether the layers themselves have to be there.
    """
    known = [digest for digest in digests if digest is not None]
    if len(known) < len(digests):
        return None
    record = layer_record(shard.totals.split, shard.shard)
    return staging.find(record, shard_fingerprint(known, config), need_files=need_files)


class PreviousLayers:
    """Finds the layers of single images, whatever shard they lie in now.

    Args:
      store: the dataset folder.
      split: its name.
      counts: numbers of shards that the existing layers were dealt into.
    """

    def __init__(self, store: Store, split: str, counts: ShardCounts) -> None:
        self._store = store
        self._split = split
        self._counts = counts
        self._records: dict[int, dict[tuple[str, str], list[dict[str, Any]]]] = {}

    def find(self, key: str, source_digest: str) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
        """The record rows of an unchanged image, each with its encoded parts (empty if it was
        rejected, or stays whole); none if the image has to be segmented."""
        tar = layer_tar(self._split, self._counts.source_shard(key))
        return [
            (row, read_parts(self._store, tar, row) if row["image_offset"] is not None else {})
            for row in self.rows(key, source_digest)
        ]

    def rows(self, key: str, source_digest: str) -> list[dict[str, Any]]:
        """The record rows of an unchanged image: one, or with `--objects each` one for each of
        its objects, in their order."""
        shard = self._counts.source_shard(key)
        if shard not in self._records:
            self._records[shard] = self._read(shard)
        return self._records[shard].get((key, source_digest), [])

    def _read(self, shard: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Rows of a record whose files are all there. Whether a key is a duplicate depends
        on the other images, so such rows say nothing."""
        store, record = self._store, layer_record(self._split, shard)
        about = read_metadata(store, record)
        if about is None or any(store.size(file.path) != file.bytes for file in about.files):
            return {}
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        rows = read_intact(store, record, lambda: read_rows(store, record))
        for row in rows or ():
            if row["status"] != Reason.DUPLICATE_KEY:
                found.setdefault((source_key(row), row["source_digest"]), []).append(row)
        for rows in found.values():
            rows.sort(key=lambda row: row["object"] or 0)
        return found
