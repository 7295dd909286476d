"""Finds existing layers: whole shards that are up to date, and single images in older shards."""

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
    """Finds the record of a source shard whose layers are up to date, in place or staged; returns
    None if they are not, or if a digest is not known.

    Args:
      staging: staging folder of the layers.
      shard: the source shard.
      digests: of the images, in their order; None for a digest that is not known.
      config: of the layers.
      need_files: whether the tar of layers has to exist.
    """
    known = [digest for digest in digests if digest is not None]
    if len(known) < len(digests):
        return None
    path = layer_record(shard.totals.split, shard.shard)
    return staging.find(path, shard_fingerprint(known, config), need_files=need_files)


class PreviousLayers:
    """Finds the layers of single images, whatever shard they lie in now.

    Args:
      store: the dataset folder.
      split: name of the split.
      counts: numbers of shards of the existing layers.
    """

    def __init__(self, store: Store, split: str, counts: ShardCounts) -> None:
        self._store = store
        self._split = split
        self._counts = counts
        self._records: dict[int, dict[tuple[str, str], list[dict[str, Any]]]] = {}

    def find(self, key: str, source_digest: str) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
        """Finds the layers of an unchanged image; returns its record rows, each with the encoded
        parts of the layer (empty if it was rejected, or stays whole). Without any, the image has to
        be segmented."""
        tar = layer_tar(self._split, self._counts.source_shard(key))
        return [
            (row, read_parts(self._store, tar, row) if row["image_offset"] is not None else {})
            for row in self.rows(key, source_digest)
        ]

    def rows(self, key: str, source_digest: str) -> list[dict[str, Any]]:
        """Finds the record rows of an unchanged image: one, or with `--objects each` one for each
        of its objects, in their order."""
        shard = self._counts.source_shard(key)
        if shard not in self._records:
            self._records[shard] = self._read(shard)
        return self._records[shard].get((key, source_digest), [])

    def _read(self, shard: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Reads the rows of a record, by key and digest; empty if a file of the shard is missing.
        Rows of duplicate keys are left out, because they depend on other images."""
        store, path = self._store, layer_record(self._split, shard)
        metadata = read_metadata(store, path)
        if metadata is None or any(store.size(file.path) != file.bytes for file in metadata.files):
            return {}
        by_image: dict[tuple[str, str], list[dict[str, Any]]] = {}
        rows = read_intact(store, path, lambda: read_rows(store, path))
        for row in rows or ():
            if row["status"] != Reason.DUPLICATE_KEY:
                by_image.setdefault((source_key(row), row["source_digest"]), []).append(row)
        for of_image in by_image.values():
            of_image.sort(key=lambda row: row["object"] or 0)
        return by_image
