"""Finds existing layers, so that they are not made again: whole shards that are up to date, and
single unchanged images in outdated shards."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.layer_files import read_parts
from pipeline.dataset.records import (
    ImageRow,
    Record,
    Staging,
    count_sources,
    read_image_rows,
    read_metadata,
)
from pipeline.dataset.shards import ShardCounts, layer_record, layer_tar
from pipeline.errors import counted
from pipeline.generate.cut_source import Cutter, by_content
from pipeline.generate.shard_elements import SourceShard
from pipeline.inputs.checksums import Checksums
from pipeline.storage.state_files import read_intact, warn_damaged
from pipeline.storage.store import Store
from transforms.filters import Reason


class Survey:
    """What is known of a source shard before any of its images is cut.

    If it `may_read`, and the shard has a record, images that are not known are read, to see
    whether the layers are up to date. Without a record, they are read only once, when they are cut.

    Args:
      staging: staging folder of the layers.
      config: configuration of the dataset.
      shard: the source shard.
      may_read: whether images may be read.

    Attributes:
      path: final path of the shard's record.
      cutter: identifies the images.
      checksums: checksums of the shard's files.
      images: images of the shard, in order of `by_content`.
      identities: identity of each image; None for an image that would have to be read for it.
      digests: digest of each image, None if it is not known.
      record: the record, in place or staged, if all layers are up to date; else None.
    """

    def __init__(
        self,
        staging: Staging,
        config: DatasetConfig,
        shard: SourceShard,
        *,
        may_read: bool = False,
    ) -> None:
        self._staging = staging
        # With `--layers drop`, the dataset has no tars of layers.
        self._need_files = config.layers == "keep"
        self.path = layer_record(shard.totals.split, shard.shard)
        self.cutter = Cutter(config.segment)
        self.checksums = Checksums(staging.store, shard.totals.split, shard.shard)
        know = self.checksums.identify if may_read else self.checksums.known
        self.images = by_content(shard.images, know)
        self.identities = [self.cutter.identify(i, self.checksums.known) for i in self.images]
        paths = (staging.staged(self.path), self.path)
        if may_read and None in self.identities and any(map(staging.store.exists, paths)):
            self.identities = [self.cutter.identify(image, know) for image in self.images]
        self.digests = [identity and identity.digest for identity in self.identities]
        self.record = self.find(self.digests)

    def find(self, digests: Sequence[str | None]) -> Record | None:
        """Finds the record of the shard if its images have these digests; returns None if its
        layers are not up to date, or if a digest is not known."""
        known = [digest for digest in digests if digest is not None]
        if len(known) < len(digests):
            return None
        checksum = self.cutter.identify_shard(known)
        return self._staging.find(self.path, checksum, need_files=self._need_files)

    def read_rows(self) -> list[ImageRow] | None:
        """Reads the rows of the record; returns None if there is no record, or if it is damaged, or
        is not of as many images as the shard has."""
        if self.record is None:
            return None
        store, path = self._staging.store, self.record.path
        rows = read_intact(store, path, lambda: read_image_rows(store, path))
        if rows is not None and count_sources(rows) != len(self.images):
            warn_damaged(store.path(path), f"it lists {counted(count_sources(rows), 'image')}")
            return None
        return rows


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

    def rows(self, key: str, source_digest: str) -> list[ImageRow]:
        """Finds the record rows of an unchanged image: one row, or with `--objects each` a row for
        each of its objects, in order of their numbers. The list is empty if the image has
        changed."""
        shard = self._counts.source_shard(key)
        if shard not in self._records:
            self._records[shard] = self._read(shard)
        return self._records[shard].get((key, source_digest), [])

    def parts(self, row: ImageRow) -> dict[str, bytes]:
        """Reads the encoded parts of a row's layer; no parts if the image was rejected, or stays
        whole."""
        if row.image_offset is None:
            return {}
        tar = layer_tar(self._split, self._counts.source_shard(row.source_key))
        return read_parts(self._store, tar, vars(row))

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
