"""Segment: cuts each source image into its layer. This is the most expensive stage.

Layers that are up to date are not made again: whole shards are found by their record, and single
images by their row in an older record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    ImageRow,
    Record,
    count_sources,
    layer_tar,
)
from pipeline.dataset.sinks import TarWriter, add_layer
from pipeline.generate.cut_source import (
    Cutter,
    Identity,
    MadeRow,
    SourceBytes,
    contents_of,
    printable,
    reject_by_name,
    with_layer,
)
from pipeline.generate.origin import JobStep
from pipeline.generate.previous_layers import PreviousLayers, Survey
from pipeline.generate.shard_elements import SourceShard, pack_sources
from pipeline.inputs.location import reads_ahead
from pipeline.inputs.source_images import Checksums, SourceImage
from pipeline.runtime.progress import Tally, count_shard, timed
from pipeline.storage.interface import read_ahead
from pipeline.storage.store import FileDigest, HashingFile
from transforms.filters import Reason, is_valid_key
from transforms.taxonomy import OUTSIDE


class SegmentShard(JobStep):
    """Listed SourceShard -> the same shard, segmented. One call does all the work on a shard.

    With `--layers keep`, a shard is only up to date if its tar of layers exists.
    """

    @timed("segment")
    def process(self, shard: SourceShard) -> list[SourceShard]:
        split = shard.totals.split
        found = Survey(self.layers, self.config, shard, may_read=True)
        cutter = self.job.origin.cutter(self.config.segment)
        rows = found.read_rows()
        tally = Tally(self.job.progress, "segment", f"{split}-{shard.shard:05d}")
        if found.record is None or rows is None or not cutter.agrees(rows, found.images):
            is_new = True
            record, rows = self._make(shard, found, cutter, tally)
        else:
            is_new = tally.load()
            record = self.layers.with_record(found.record, found.path, len(rows))
        count_shard("source_shards", record.files, is_new=is_new)
        tally.end()
        if not self.job.origin.recipe:  # Else the pictures were found before.
            found.checksums.save()
        tally.note_done(len(found.images))
        has_layers = layer_tar(split, shard.shard) in record.locations
        # Among images of the same key, it is the first, because the others are rejected.
        by_key = {image.key: image for image in reversed(found.images)}
        return [
            dataclasses.replace(
                shard,
                images=(),
                segmented=count_sources(rows),
                record=record,
                sources=b""
                if has_layers
                else pack_sources(rows, lambda row: by_key[row.source_key]),
            )
        ]

    def _make(
        self,
        shard: SourceShard,
        found: Survey,
        cutter: Cutter,
        tally: Tally,
    ) -> tuple[Record, list[ImageRow]]:
        """Writes the layers and then the record; returns the record and its rows."""
        split = shard.totals.split
        counts = self.job.previous.get(split, shard.totals.counts)
        previous = PreviousLayers(self.layers.store, split, counts)
        tar_path = layer_tar(split, shard.shard)
        rows, files, digests = [], [], []
        preceding = (None, *found.images)[: len(found.images)]
        images = zip(found.images, found.identities, preceding, strict=True)
        ahead = reads_ahead(image.location for image in found.images)
        by_object = self.config.segment.objects == "each"
        read = functools.partial(_read, cutter, previous, found, by_object)
        reading = read_ahead(read, images, ahead)
        writing: contextlib.AbstractContextManager[HashingFile | None] = (
            self.layers.store.create(self.layers.staged(tar_path))
            if cutter.has_layers
            else contextlib.nullcontext()
        )
        with writing as file, contextlib.closing(reading):
            tar = None if file is None else TarWriter(file)
            for _, image in reading:
                digests.append(image.digest)
                for row, layer in _rows(cutter, image, tally):
                    if tar is not None and layer:
                        row = dataclasses.replace(row, **add_layer(tar, row.key, layer))
                    rows.append(row)
                tally.advance(1)
            if tar is not None:
                tar.close()
        if file is not None:
            accepted = sum(row.status == ACCEPTED for row in rows)
            files.append(FileDigest(tar_path, file.size, file.sha256, accepted))
        else:
            files += cutter.named_tars(tar_path, split, shard.totals.counts, found.images)
        rows.sort(key=operator.attrgetter("rank"))
        table = pa.Table.from_pylist(list(map(vars, rows)), RECORD_SCHEMA)
        tally.note()
        record = self.layers.write(found.path, table, cutter.identify_shard(digests), files)
        if file is None:  # A tar that is only named is missing.
            record = dataclasses.replace(record, locations={found.path: record.path})
        return record, rows


class _ReadImage(NamedTuple):
    """What was read to make the rows of an image.

    Attributes:
      row: what its rows have in common.
      finished: its rows, each with the encoded files of its layer, if the image need not be cut.
      source: the bytes to cut it from; None if it need not be cut.
      fate: the counter of the image, if it is accepted and finished.
    """

    digest: str
    row: ImageRow
    finished: list[MadeRow]
    source: SourceBytes | None = None
    fate: str = "images_kept"


def _read(
    cutter: Cutter,
    previous: PreviousLayers,
    found: Survey,
    by_object: bool,
    item: tuple[SourceImage, Identity | None, SourceImage | None],
) -> _ReadImage:
    """Reads all that an image's rows are made from; given (image, identity, image before it)."""
    image, identity, preceding = item
    # If a recipe tells its status, all is known of it.
    if image.status and (finished := cutter.finished(image)):
        fate = "images_cut" if any(files for _, files in finished) else "images_kept"
        return _ReadImage(image.digest, finished[-1][0], finished, fate=fate)
    rejected, source = reject_by_name(image, preceding), None
    if identity is None:
        if rejected is None:
            source = _read_source(image, found.checksums)
        # What was read is known.
        know = found.checksums.known if source else found.checksums.identify
        identity = found.cutter.identify(image, know)
        assert identity is not None
    row = ImageRow(
        key=printable(image.key),
        path=printable(image.name),
        status=ACCEPTED,
        wnid=image.wnid or None,
        label=None if image.label == OUTSIDE else image.label,
        source_md5=identity.md5,
        source_digest=identity.digest,
        # Objects of one picture share its scene.
        group=printable(image.group or (image.key if by_object else "")) or None,
        object=0 if by_object else None,
    )
    if rejected is not None:
        row = dataclasses.replace(row, status=str(rejected[0]), detail=rejected[1])
        return _ReadImage(identity.digest, row, [(row, {})])
    kept = [
        (dataclasses.replace(old, path=row.path), previous.layer(old))
        for old in previous.rows(image.key, identity.digest)
    ]
    if not kept:
        source = source or _read_source(image, found.checksums)
    return _ReadImage(identity.digest, row, kept, source)


def _read_source(image: SourceImage, checksums: Checksums) -> SourceBytes:
    picture, *others = contents_of(image)
    annotation, mask = (each and checksums.read(each)[0] for each in others)
    return SourceBytes(checksums.read(picture)[0], annotation, mask, location=image.location)


def _rows(cutter: Cutter, image: _ReadImage, tally: Tally) -> Iterator[MadeRow]:
    """Yields the record rows of an image, or of its objects, with the encoded files of each layer.

    The positions of the files in the tar are not filled in yet, or are those in an older tar.
    """
    if image.source is None:
        if image.row.status == ACCEPTED:
            tally.counts[image.fate] += 1
        yield from image.finished
        return
    # No layer of a whole image is stored, as Compose crops the image as fast as it would read it.
    is_whole = not cutter.segmenter.needs_box
    is_segmented = is_whole
    for cut in cutter.cut(image.source):
        is_segmented |= cut.mask_over_box is not None or cut.reason is Reason.SEGMENTATION_FAILED
        if cut.fallback:
            tally.counts["segmenter_fallbacks"] += 1
        row = image.row
        if cut.number:
            row = dataclasses.replace(row, key=f"{row.key}_{cut.number}", object=cut.number)
            if not is_valid_key(row.key):
                cut = dataclasses.replace(
                    cut, layer=None, reason=Reason.INVALID_KEY, detail="its key is too long"
                )
        box = cut.box and list(cut.box)
        row = dataclasses.replace(
            row,
            status=ACCEPTED if cut.reason is None else str(cut.reason),
            detail=printable(cut.detail) or None,
            width=cut.width,
            height=cut.height,
            native_box=box,
            mask_over_box=cut.mask_over_box,
            layer_digest=cut.layer.digest if cut.layer else None,
        )
        yield (row, {}) if is_whole or cut.layer is None else with_layer(row, cut.layer)
    tally.counts["images_cropped" if is_whole else "images_segmented"] += is_segmented
