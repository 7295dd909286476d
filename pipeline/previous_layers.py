"""Layers of the dataset as it stands, to copy where an image has not changed."""

from __future__ import annotations

from typing import Any

from pipeline.layer_files import read_parts
from pipeline.records import ACCEPTED, read_about, read_rows
from pipeline.shards import ShardCounts, layer_record, layer_tar
from pipeline.storage import Store
from transforms.filters import Reason


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
        self._records: dict[int, dict[tuple[str, str], dict[str, Any]]] = {}

    def find(self, key: str, source_digest: str) -> tuple[dict[str, Any], dict[str, bytes]] | None:
        """The record row of an unchanged image with its encoded parts (empty if the image
        was rejected, or stays whole), None if the image has to be segmented."""
        row = self.row(key, source_digest)
        if row is None:
            return None
        if row["status"] != ACCEPTED or row["image_offset"] is None:
            return row, {}
        tar = layer_tar(self._split, self._counts.source_shard(key))
        return row, read_parts(self._store, tar, row)

    def row(self, key: str, source_digest: str) -> dict[str, Any] | None:
        """The record row of an unchanged image."""
        shard = self._counts.source_shard(key)
        if shard not in self._records:
            self._records[shard] = self._read(shard)
        return self._records[shard].get((key, source_digest))

    def _read(self, shard: int) -> dict[tuple[str, str], dict[str, Any]]:
        """Rows of a record whose files are all there. Whether a key is a duplicate depends
        on the other images, so such rows say nothing."""
        store, record = self._store, layer_record(self._split, shard)
        about = read_about(store, record)
        if about is None or any(store.size(file.path) != file.bytes for file in about.files):
            return {}
        return {
            (row["key"], row["source_digest"]): row
            for row in read_rows(store, record)
            if row["status"] != Reason.DUPLICATE_KEY
        }
