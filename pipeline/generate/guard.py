"""The guard before a rebuild: a job that would make much of a dataset again stops before it begins.

A schedule calls the same command for years. An input that was moved, mounted empty or written
anew would make it segment everything again, and replace a good dataset. So List, on top of a
dataset, asks how many source shards would be made again, and more than a tenth of them stop the
job unless it was told to go on. The answer is told by names, records, and sizes and times of
files: no image is read.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import SEGMENT_VERSION
from pipeline.dataset.records import Staging, is_first, read_rows, source_key
from pipeline.dataset.shards import layer_record
from pipeline.errors import JobError
from pipeline.generate.cut_source import contents_of, known_digest
from pipeline.generate.previous_layers import find_layers
from pipeline.generate.shard_elements import SourceShard
from pipeline.inputs.checksums import Checksums
from pipeline.inputs.source_images import SourceImage
from pipeline.storage.parallel import REQUESTS_IN_FLIGHT, read_ahead
from pipeline.storage.state_files import read_intact

REBUILT_SHARE = 0.1
"""Share of the source shards that is made again without being asked for; one always is."""


def check_rebuild(
    stages: Mapping[str, Any],
    shards: Sequence[SourceShard],
    config: DatasetConfig,
    staging: Staging,
    renumbered: Sequence[SourceShard] = (),
) -> None:
    """Looks at all source shards of a job on top of a dataset.

    Args:
      stages: that the dataset as it stands was made with, as its manifest says.
      shards: of all splits that the dataset has, by its numbers of shards.
      config: of the dataset to be.
      staging: where its layers wait.
      renumbered: the same images by other numbers of shards, if those are to be had.

    Raises:
      JobError: too much would be made again; the message says why.
      OSError: a record cannot be read.
    """
    is_same_way = stages.get("segment_fingerprint") == config.segment.fingerprint()
    ahead = REQUESTS_IN_FLIGHT if staging.store.is_remote else 0
    look = functools.partial(_look, config, staging, is_same_way)
    if renumbered and not any(found for _, found in read_ahead(look, renumbered, ahead)):
        return  # All are made, and may be half in place: Commit was killed.
    found = sum((each for _, each in read_ahead(look, shards, ahead)), Counter[str]())
    if found["shards"] <= max(1, REBUILT_SHARE * len(shards)):
        return
    cause = "{added} images added, {changed} changed, {removed} removed".format_map(found)
    if found["lost"]:
        cause += f"; files of {found['lost']} are missing"
    if not is_same_way:
        why = f"segment stage {SEGMENT_VERSION}, the dataset has {stages.get('segment')}"
        if stages.get("segment") == SEGMENT_VERSION:
            why = "other flags, or another segmenter"
        cause = f"layers are made in another way now ({why})"
    raise JobError(
        f"{found['shards']} of {len(shards)} source shards would be made again, more than a "
        f"tenth: {cause}. Nothing has been changed; if that is meant, add --overwrite rebuild"
    )


def _look(
    config: DatasetConfig, staging: Staging, is_same_way: bool, shard: SourceShard
) -> Counter[str]:
    """What of a shard would be made again: nothing, or `shards` 1; images that are `added`,
    `changed` and `removed`, by what its record in place says; and `lost` 1, where all images are as
    they were, and its files are not. An image that has changed in no way but how it is segmented
    counts as changed."""
    store, record = staging.store, layer_record(shard.totals.split, shard.shard)
    checksums = Checksums.for_shard(store, shard.totals.split, shard.shard)
    digests = [known_digest(image, config.segment, checksums.known) for image in shard.images]
    find = functools.partial(
        find_layers, staging, shard, config=config.segment, need_files=config.layers == "keep"
    )
    if find(digests):
        return Counter()
    columns = ["key", "object", "source_digest"]
    rows = read_intact(store, record, lambda: read_rows(store, record, columns))
    if rows is None and store.exists(record):
        return Counter()  # Damaged: it has to be made again, whatever has become of the input.
    before = [(source_key(row), row["source_digest"]) for row in rows or () if is_first(row)]
    if None in digests and is_same_way:
        known: dict[str, list[str]] = {}
        for key, digest in before:
            known.setdefault(key, []).append(digest)
        for position, image in enumerate(shard.images):
            if digests[position] is None and not _is_unlike(image, checksums):
                digests[position] = next(iter(known.get(image.key, [])), None)
                known[image.key] = known.get(image.key, [])[1:]
        if find(digests):
            return Counter()
    after = [(image.key, digest) for image, digest in zip(shard.images, digests, strict=True)]
    same = (Counter(after) & Counter(before)).total()
    keys, keys_before = (Counter(key for key, _ in images) for images in (after, before))
    added, removed = keys - keys_before, keys_before - keys
    return Counter(
        shards=1,
        added=added.total(),
        changed=len(after) - same - added.total(),
        removed=removed.total(),
        lost=int(same == len(after) == len(before)),
    )


def _is_unlike(image: SourceImage, checksums: Checksums) -> bool:
    """Whether an image whose digest is not known has changed, as far as can be told."""
    contents = [content for content in contents_of(image) if content is not None]
    return any(checksums.known(each) is None and checksums.is_unlike(each) for each in contents)
