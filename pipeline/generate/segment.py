"""Segment: cuts each source image into its layer. This is the most expensive stage.

One call works on one source shard, one image at a time. It writes the layers, and then the record,
to the staging folder. Layers that are up to date are not made again: whole shards are found by
their record, and single images by their row in an older record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import cv2
import pyarrow as pa

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.layer_files import add_layer, encode_layer, layer_digest
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    ImageRow,
    Record,
    count_sources,
    read_image_rows,
)
from pipeline.dataset.shards import layer_record, layer_tar
from pipeline.errors import counted
from pipeline.generate.cut_source import (
    SourceBytes,
    by_content,
    contents_of,
    crop_source,
    cut_source,
    known_digest,
    printable,
    reject_by_name,
    shard_fingerprint,
    source_digest,
)
from pipeline.generate.job import JobStep
from pipeline.generate.previous_layers import PreviousLayers, find_layers
from pipeline.generate.shard_elements import SourceShard, pack_sources
from pipeline.inputs.checksums import Checksums
from pipeline.inputs.location import reads_ahead
from pipeline.inputs.source_images import SourceImage
from pipeline.runtime.counters import UnitTally, count_shard, timed
from pipeline.runtime.progress import Meter
from pipeline.storage.parallel import read_ahead
from pipeline.storage.state_files import read_intact, warn_damaged
from pipeline.storage.store import FileDigest, HashingFile
from pipeline.storage.tar_writer import TarWriter
from transforms.cropping import CroppedImage
from transforms.cutting import Cut
from transforms.filters import Reason, is_valid_key
from transforms.taxonomy import OUTSIDE


class SegmentShard(JobStep):
    """Listed SourceShard -> the same shard, segmented. One call does all the work on a shard.

    With `--layers keep`, a shard is only up to date if its tar of layers exists; with `drop`, it
    needs no tar.
    """

    def setup(self) -> None:
        # Parallelism comes from the workers of the runner.
        cv2.setNumThreads(1)

    @timed("segment")
    def process(self, shard: SourceShard) -> list[SourceShard]:
        split = shard.totals.split
        path = layer_record(split, shard.shard)
        checksums = Checksums.for_shard(self.layers.store, split, shard.shard)
        shard = dataclasses.replace(shard, images=by_content(shard.images, checksums.identify))
        digests = self._digests(shard, path, checksums)
        existing = find_layers(
            self.layers,
            shard,
            digests,
            self.config.segment,
            need_files=self.config.layers == "keep",
        )
        rows = None if existing is None else self._read_complete(existing, shard)
        name = f"{split}-{shard.shard:05d}"
        meter = Meter(self.job.progress, "segment", name)
        tally = UnitTally(self.job.progress, "segment", name)
        if existing is None or rows is None:
            is_new = True
            record, rows = self._make(shard, digests, checksums, meter, tally)
        else:
            is_new = tally.recall()
            meter.add(len(shard.images))
            record = self.layers.with_record(existing, path, len(rows))
        count_shard("source_shards", record.files, is_new=is_new)
        tally.end()
        checksums.save()
        meter.end()
        has_layers = layer_tar(split, shard.shard) in record.locations
        segmented = dataclasses.replace(
            shard,
            images=(),
            segmented=count_sources(rows),
            record=record,
            sources=b"" if has_layers else pack_sources(rows, _sources(shard)),
        )
        return [segmented]

    def _read_complete(self, record: Record, shard: SourceShard) -> list[ImageRow] | None:
        """Reads the rows of a record; returns None if the record is damaged, or is not of as many
        images as the shard has."""
        store, path = self.layers.store, record.path
        rows = read_intact(store, path, lambda: read_image_rows(store, path))
        if rows is not None and count_sources(rows) != len(shard.images):
            warn_damaged(store.path(path), f"it lists {counted(count_sources(rows), 'image')}")
            return None
        return rows

    def _digests(self, shard: SourceShard, path: str, checksums: Checksums) -> list[str | None]:
        """Returns the digests of a shard's images.

        If the shard has a record, images whose digest is not known are read, to see whether the
        layers are up to date. Otherwise the digest of these images is None, and they are read only
        once, when they are cut.
        """
        known = [
            known_digest(image, self.config.segment, checksums.known) for image in shard.images
        ]
        paths = (self.layers.staged(path), path)
        if None in known and any(map(self.layers.store.exists, paths)):
            return [
                source_digest(image, self.config.segment, checksums.identify)
                for image in shard.images
            ]
        return known

    def _make(
        self,
        shard: SourceShard,
        digests: list[str | None],
        checksums: Checksums,
        meter: Meter,
        tally: UnitTally,
    ) -> tuple[Record, list[ImageRow]]:
        """Writes the layers and then the record; returns the record and its rows."""
        split = shard.totals.split
        counts = self.job.previous.get(split, shard.totals.counts)
        previous = PreviousLayers(self.layers.store, split, counts)
        tar_path = layer_tar(split, shard.shard)
        rows, files, image_digests = [], [], []
        preceding = (None, *shard.images)[: len(shard.images)]
        images = zip(shard.images, digests, preceding, strict=True)
        ahead = reads_ahead(shard.images[0].path) if shard.images else 0
        reading = read_ahead(
            functools.partial(_read, previous, checksums, self.config.segment), images, ahead
        )
        writing: contextlib.AbstractContextManager[HashingFile | None] = contextlib.nullcontext()
        if not self.config.segment.is_whole:
            writing = self.layers.store.create(self.layers.staged(tar_path))
        with writing as file, contextlib.closing(reading):
            tar = None if file is None else TarWriter(file)
            for (image, _, _), (digest, md5, content) in reading:
                image_digests.append(digest)
                for row, parts in self._rows(image, digest, md5, content, tally):
                    if tar is not None and parts:
                        row = dataclasses.replace(row, **add_layer(tar, row.key, parts))
                    rows.append(row)
                meter.add(1)
            if tar is not None:
                tar.close()
        if file is not None:
            accepted = sum(row.status == ACCEPTED for row in rows)
            files.append(FileDigest(tar_path, file.size, file.sha256, accepted))
        rows.sort(key=lambda row: row.rank)
        table = pa.Table.from_pylist(list(map(vars, rows)), RECORD_SCHEMA)
        checksum = shard_fingerprint(image_digests, self.config.segment)
        tally.note()
        path = layer_record(split, shard.shard)
        return self.layers.write(path, table, checksum, files), rows

    def _rows(
        self, image: SourceImage, digest: str, md5: str, content: _ImageContent, tally: UnitTally
    ) -> Iterator[tuple[ImageRow, dict[str, bytes]]]:
        """Yields the record rows of an image: one row, or one for each object. Each row comes with
        the encoded parts of its layer, which are empty if it has none. The positions of the parts
        in the tar are not filled in yet, or are those in an older tar."""
        by_object = self.config.segment.objects == "each"
        row = ImageRow(
            key=printable(image.key),
            path=printable(image.name),
            status=ACCEPTED,
            wnid=image.wnid or None,
            label=None if image.label == OUTSIDE else image.label,
            source_md5=md5,
            source_digest=digest,
            # Objects of one picture share its scene.
            group=printable(image.group or (image.key if by_object else "")) or None,
            object=0 if by_object else None,
        )
        if isinstance(content, _Rejected):
            yield dataclasses.replace(row, status=str(content.reason), detail=content.detail), {}
            return
        if isinstance(content, _Kept):
            tally.add("images_kept")
            for kept, parts in content.rows:
                yield dataclasses.replace(kept, path=row.path), parts
            return
        if self.config.segment.is_whole:
            tally.add("images_cropped")
            # No layer is stored, because cropping the image again in Compose takes no longer than
            # writing and reading it would.
            cropped = crop_source(content, self.config.segment)
            yield _completed(row, cropped, layer_digest=cropped.digest), {}
            return
        tally.add("images_segmented")
        for cut in cut_source(content, self.config.segment):
            if cut.fallback:
                tally.add("segmenter_fallbacks")
            yield self._row(row, cut)

    def _row(self, row: ImageRow, cut: Cut) -> tuple[ImageRow, dict[str, bytes]]:
        """Completes the row of an image, or of one of its objects, from its cut; returns the row
        and the encoded parts of the layer, which are empty if it was rejected."""
        if cut.number:
            row = dataclasses.replace(row, key=f"{row.key}_{cut.number}", object=cut.number)
            if not is_valid_key(row.key):
                cut = dataclasses.replace(
                    cut, layer=None, reason=Reason.INVALID_KEY, detail="its key is too long"
                )
        box = cut.box and list(cut.box)
        row = _completed(row, cut, native_box=box, mask_over_box=cut.mask_over_box)
        if cut.layer is None:
            return row, {}
        row = dataclasses.replace(
            row,
            box=list(cut.layer.box),
            fg_fraction=cut.layer.fg_fraction,
            layer_digest=layer_digest(cut.layer),
        )
        return row, encode_layer(cut.layer)


def _completed(row: ImageRow, result: Cut | CroppedImage, **columns: Any) -> ImageRow:
    """Adds to a row what came of cutting or cropping the image, and more columns."""
    return dataclasses.replace(
        row,
        status=ACCEPTED if result.reason is None else str(result.reason),
        detail=printable(result.detail) or None,
        width=result.width,
        height=result.height,
        **columns,
    )


@dataclasses.dataclass(frozen=True)
class _Rejected:
    """An image that is rejected without looking at its content."""

    reason: Reason
    detail: str


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The rows of an unchanged image in an older record, each with the encoded parts of its layer,
    which are empty if it has no layer."""

    rows: list[tuple[ImageRow, dict[str, bytes]]]


_ImageContent = _Rejected | _Kept | SourceBytes


def _read(
    previous: PreviousLayers,
    checksums: Checksums,
    config: SegmentConfig,
    item: tuple[SourceImage, str | None, SourceImage | None],
) -> tuple[str, str, _ImageContent]:
    """Reads everything that an image's rows are made from.

    Args:
      previous: existing layers.
      checksums: checksums of the shard's files.
      config: configuration of the layers.
      item: (image, its digest or None if not known, the image before it in the shard or None).

    Returns:
      (digest of the image, MD5 of its picture, content).
    """
    image, digest, preceding = item
    rejected = reject_by_name(image, preceding)
    source: SourceBytes | None = None
    if digest is None:
        if rejected is None:
            source = SourceBytes.read(image, checksums.read)
        digest = source_digest(image, config, checksums.identify)
    md5 = checksums.identify(contents_of(image)[0]).md5
    if rejected is not None:
        return digest, md5, _Rejected(*rejected)
    kept = previous.find(image.key, digest)
    if kept:
        return digest, md5, _Kept(kept)
    return digest, md5, source or SourceBytes.read(image, checksums.read)


def _sources(shard: SourceShard) -> dict[str, SourceImage]:
    """Returns the source images by key. Among images of the same key, it is the first, because the
    others are rejected."""
    return {image.key: image for image in reversed(shard.images)}
