"""Finds existing layers, so that they are not made again: whole shards that are up to date, and
single unchanged images in outdated shards."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.layer_files import read_parts
from pipeline.dataset.records import ImageRow, Record, Staging, read_image_rows, read_metadata
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
    """Finds the record of a source shard, in place or staged; returns None if its layers are not up
    to date, or if a digest is not known.

    Args:
      staging: staging folder of the layers.
      shard: the source shard.
      digests: digest of each image, in the order of the images; None for a digest that is not
        known.
      config: configuration of the layers.
      need_files: whether the tar of layers has to exist.
    """
    known = [digest for digest in digests if digest is not None]
    if len(known) < len(digests):
        return None
    path = layer_record(shard.totals.split, shard.shard)
    return staging.find(path, shard_fingerprint(known, config), need_files=need_files)


class PreviousLayers:
    """Finds the layers of single images in the existing shards, even if the images now belong to
    shards of other numbers.

    Args:
      store: the dataset folder.
      split: name of the split.
      counts: numbers of shards of the existing layers.
    """

    def __init__(self, store: Store, split: str, counts: ShardCounts) -> None:
        self._store = store
        self._split = split
        self._counts = counts
        self._records: dict[int, dict[tuple[str, str | None], list[ImageRow]]] = {}

    def find(self, key: str, source_digest: str) -> list[tuple[ImageRow, dict[str, bytes]]]:
        """Finds the layers of an unchanged image; returns its record rows, each with the encoded
        parts of the layer (no parts if the image was rejected, or stays whole). If the list is
        empty, the image has to be segmented."""
        tar = layer_tar(self._split, self._counts.source_shard(key))
        return [
            (row, read_parts(self._store, tar, vars(row)) if row.image_offset is not None else {})
            for row in self.rows(key, source_digest)
        ]

    def rows(self, key: str, source_digest: str) -> list[ImageRow]:
        """Finds the record rows of an unchanged image: one row, or with `--objects each` a row for
        each of its objects, in order of their numbers. The list is empty if the image has
        changed."""
        shard = self._counts.source_shard(key)
        if shard not in self._records:
            self._records[shard] = self._read(shard)
        return self._records[shard].get((key, source_digest), [])

    def _read(self, shard: int) -> dict[tuple[str, str | None], list[ImageRow]]:
        """Reads the rows of a record, by source key and digest; returns no rows if the record is
        missing or damaged, or a file of the shard is missing or of another size. Images that were
        rejected for a duplicate key are left out, because that status depends on other images."""
        store, path = self._store, layer_record(self._split, shard)
        metadata = read_metadata(store, path)
        if metadata is None or any(store.size(file.path) != file.bytes for file in metadata.files):
            return {}
        by_image: dict[tuple[str, str | None], list[ImageRow]] = {}
        rows = read_intact(store, path, lambda: read_image_rows(store, path))
        for row in rows or ():
            if row.status != Reason.DUPLICATE_KEY:
                by_image.setdefault((row.source_key, row.source_digest), []).append(row)
        for of_image in by_image.values():
            of_image.sort(key=lambda row: row.object or 0)
        return by_image
