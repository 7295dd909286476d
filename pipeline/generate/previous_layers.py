"""Finds existing layers, so that they are not made again.

It finds whole shards that are up to date, and single unchanged images in outdated shards. It also
stops a job early if the job would make much of a dataset again.

A schedule may run the same command for years. If its input is moved, mounted empty or rewritten one
day, the job would segment everything again and replace a good dataset. So List counts how many
source shards would be made again, and stops the job if they are more than a tenth, unless the user
passes `--overwrite rebuild`. Shards that only gain images do not count, because nothing is lost
then, and a small dataset may grow in all of them. For the count, no image is read.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.dataset.config import SEGMENT_VERSION, DatasetConfig
from pipeline.dataset.records import (
    ImageRow,
    Record,
    ShardCounts,
    Staging,
    count_sources,
    layer_record,
    layer_tar,
    read_image_rows,
    read_metadata,
)
from pipeline.dataset.sinks import read_layer
from pipeline.errors import JobError, counted
from pipeline.generate.cut_source import Cutter, by_content, contents_of
from pipeline.generate.shard_elements import ListedShard, SourceShard
from pipeline.inputs.source_images import Checksums, SourceImage
from pipeline.storage.interface import read_ahead
from pipeline.storage.state_files import read_intact, warn_damaged
from pipeline.storage.store import Store
from transforms.filters import Reason


class Survey:
    """What is known of a source shard before any of its images is cut.

    If it `may_read`, and the shard has a record, images that are not known are read, to see whether
    the layers are up to date. Without a record, they are read only once, when they are cut.

    >>> from pipeline.generate.shard_elements import SplitTotals
    >>> from pipeline.inputs.location import Location
    >>> totals = SplitTotals("val", ShardCounts(4, 2), listed=1, outside=0, other_files=0)
    >>> location = Location("/data/val/cat/cat_3.jpg")
    >>> image = SourceImage("cat_3", location, "cat/cat_3.jpg", "cat", 0)
    >>> staging = Staging(Store.at("dataset"), ".in9/staging/layers")
    >>> survey = Survey(staging, DatasetConfig(), SourceShard(totals, 0, (image,)))
    >>> survey.path, survey.digests, survey.record  # The image was never read.
    ('layers/val-00000.parquet', [None], None)

    Attributes:
      path: final path of the shard's record.
      images: images of the shard, in order of `by_content`.
      identities, digests: those of each image; None where it would have to be read for it.
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
        """Finds the shard's record by digests of images; None if outdated, or one is not known."""
        known = [digest for digest in digests if digest is not None]
        if len(known) < len(digests):
            return None
        checksum = self.cutter.identify_shard(known)
        return self._staging.find(self.path, checksum, need_files=self._need_files)

    def read_rows(self) -> list[ImageRow] | None:
        """Reads the record's rows; None if it is missing or damaged, or has too many or too few."""
        if self.record is None:
            return None
        store, path = self._staging.store, self.record.path
        rows = read_intact(store, path, lambda: read_image_rows(store, path))
        if rows is not None and count_sources(rows) != len(self.images):
            warn_damaged(store.path(path), f"it lists {counted(count_sources(rows), 'image')}")
            return None
        return rows


@dataclasses.dataclass(frozen=True, eq=False)
class PreviousLayers:
    """Finds the layers of images in existing shards, which may be of other numbers than now."""

    store: Store
    split: str
    counts: ShardCounts
    _records: dict[int, dict[tuple[str, str | None], list[ImageRow]]] = dataclasses.field(
        default_factory=dict, init=False
    )

    def rows(self, key: str, source_digest: str) -> list[ImageRow]:
        """Returns an unchanged image's rows, by number of object; none if it has changed."""
        shard = self.counts.source_shard(key)
        if shard not in self._records:
            self._records[shard] = self._read(shard)
        return self._records[shard].get((key, source_digest), [])

    def layer(self, row: ImageRow) -> dict[str, bytes]:
        """Reads the encoded files of a row's layer; none for a rejected image or a whole one."""
        if row.image_offset is None:
            return {}
        tar = layer_tar(self.split, self.counts.source_shard(row.source_key))
        return read_layer(self.store, tar, vars(row))

    def _read(self, shard: int) -> dict[tuple[str, str | None], list[ImageRow]]:
        """Reads the rows of a record, by source key and digest.

        There are none if the record is missing or damaged, or a file of the shard is missing or of
        another size. Duplicate keys are left out, because their status depends on other images.
        """
        store, path = self.store, layer_record(self.split, shard)
        metadata = read_metadata(store, path)
        if metadata is None or any(store.size(file.path) != file.bytes for file in metadata.files):
            return {}
        by_image: dict[tuple[str, str | None], list[ImageRow]] = {}
        for row in read_intact(store, path, lambda: read_image_rows(store, path)) or ():
            if row.status != Reason.DUPLICATE_KEY:
                by_image.setdefault((row.source_key, row.source_digest), []).append(row)
        for of_image in by_image.values():
            of_image.sort(key=lambda row: row.object or 0)
        return by_image


REBUILT_SHARE = 0.1
"""Largest share of source shards (0 to 1) that may be made again without `--overwrite rebuild`.
One shard is always allowed, unless none of the dataset's images is in the input any more."""


def check_rebuild(
    stages: Mapping[str, object],
    shards: Sequence[ListedShard],
    config: DatasetConfig,
    staging: Staging,
    renumbered: Sequence[ListedShard] = (),
) -> None:
    """Checks that a job makes few source shards of an existing dataset again.

    Args:
      stages: versions and fingerprints of the existing dataset's stages, from its manifest.
      shards: the listed images of all splits that the dataset has, in its present source shards.
      renumbered: the same images in the new source shards; empty if the numbers of shards stay.

    Raises:
      JobError: too many shards would be made again; the message says why.
    """
    has_same_settings = stages.get("segment_fingerprint") == config.segment.fingerprint()
    ahead = staging.store.files.requests_at_once
    count_work = functools.partial(_count_work, config, staging, has_same_settings)
    if renumbered and not any(work for _, work in read_ahead(count_work, renumbered, ahead)):
        # All new shards are already made. Commit may have been killed half-way, so comparing with
        # the old numbers of shards would say nothing.
        return
    total = sum((work for _, work in read_ahead(count_work, shards, ahead)), Counter[str]())
    is_another_input = total["shards"] == len(shards) and total["removed"] and not total["kept"]
    if total["shards"] <= max(1, REBUILT_SHARE * len(shards)) and not is_another_input:
        return
    cause = f"{counted(total['added'], 'image')} added, {total['changed']} changed, "
    cause += f"{total['removed']} removed"
    if total["lost"]:
        cause += f"; files of {total['lost']} are missing"
    if not has_same_settings:
        reason = (
            "other flags, or another segmenter"
            if stages.get("segment") == SEGMENT_VERSION
            else f"segment stage {SEGMENT_VERSION}, the dataset has {stages.get('segment')}"
        )
        cause = f"layers are made in another way now ({reason})"
    raise JobError(
        f"{total['shards']} of {len(shards)} source shards would be made again, more than a "
        f"tenth: {cause}. Nothing has been changed; if the folder holds another dataset, choose "
        "another --output; if that is meant, add --overwrite rebuild"
    )


def _count_work(
    config: DatasetConfig, staging: Staging, has_same_settings: bool, shard: ListedShard
) -> Counter[str]:
    """Counts the work on a shard; empty if it is up to date, or its record is damaged.

    Otherwise `shards` is 1, or 0 if the shard only gains images, and `added`, `changed`, `removed`
    and `kept` (changed or not) are numbers of images, compared with the record in place. An image
    whose segmentation alone has changed is `changed`. `lost` is 1 if no image differs from the
    record, because then the shard can only be out of date if one of its files is missing.
    """
    found = Survey(staging, config, shard.make())
    if found.record:
        return Counter()
    store, path, digests = staging.store, found.path, found.digests
    rows = read_intact(store, path, lambda: read_image_rows(store, path))
    if rows is None and store.exists(path):
        return Counter()  # A damaged record has to be made again anyway, so it does not count.
    before = [(row.source_key, row.source_digest) for row in rows or () if row.is_first]
    if None in digests and has_same_settings:
        known: dict[str, list[str | None]] = {}
        for key, digest in before:
            known.setdefault(key, []).append(digest)
        for position, image in enumerate(found.images):
            if digests[position] is None and not _is_unlike(image, found.checksums):
                digests[position] = next(iter(known.get(image.key, [])), None)
                known[image.key] = known.get(image.key, [])[1:]
        if found.find(digests):
            return Counter()
    after = [(image.key, digest) for image, digest in zip(found.images, digests, strict=True)]
    same = (Counter(after) & Counter(before)).total()
    keys, keys_before = (Counter(key for key, _ in images) for images in (after, before))
    added, removed = (keys - keys_before).total(), (keys_before - keys).total()
    changed, lost = len(after) - same - added, same == len(after) == len(before)
    return Counter(
        shards=int(rows is None or changed + removed > 0 or lost),
        added=added,
        changed=changed,
        removed=removed,
        kept=(keys & keys_before).total(),
        lost=int(lost),
    )


def _is_unlike(image: SourceImage, checksums: Checksums) -> bool:
    """Returns whether an image of unknown digest must have changed, by the state of its files."""
    contents = [content for content in contents_of(image) if content is not None]
    return any(
        checksums.known(each) is None and checksums.must_have_changed(each) for each in contents
    )
