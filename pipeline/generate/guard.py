"""The guard before a rebuild: stops a job early if it would make much of a dataset again.

A schedule may run the same command for years. If its input is moved, mounted empty or rewritten one
day, the job would segment everything again and replace a good dataset. So List counts how many
source shards of an existing dataset would be made again, and stops the job if they are more than a
tenth, unless the user passes `--overwrite rebuild`. For the count, names, records, and sizes and
times of files are enough: no image is read.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import SEGMENT_VERSION
from pipeline.dataset.records import Staging, read_image_rows
from pipeline.errors import JobError, counted
from pipeline.generate.cut_source import contents_of
from pipeline.generate.previous_layers import Survey
from pipeline.generate.shard_elements import SourceShard
from pipeline.inputs.checksums import Checksums
from pipeline.inputs.source_images import SourceImage
from pipeline.storage.parallel import REQUESTS_IN_FLIGHT, read_ahead
from pipeline.storage.state_files import read_intact

REBUILT_SHARE = 0.1
"""Largest share of source shards (0 to 1) that may be made again without `--overwrite rebuild`.
One shard is always allowed, unless none of the dataset's images is in the input any more."""


def check_rebuild(
    stages: Mapping[str, Any],
    shards: Sequence[SourceShard],
    config: DatasetConfig,
    staging: Staging,
    renumbered: Sequence[SourceShard] = (),
) -> None:
    """Checks that a job makes few source shards of an existing dataset again.

    Args:
      stages: versions and fingerprints of the existing dataset's stages, from its manifest.
      shards: the listed images of all splits that the dataset has, in its present source shards.
      config: configuration of the new dataset.
      staging: staging folder of the layers.
      renumbered: the same images in the new source shards; empty if the numbers of shards stay the
        same.

    Raises:
      JobError: too many shards would be made again; the message says why.
      OSError: a record cannot be read.
    """
    has_same_settings = stages.get("segment_fingerprint") == config.segment.fingerprint()
    ahead = REQUESTS_IN_FLIGHT if staging.store.is_remote else 0
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
        reason = f"segment stage {SEGMENT_VERSION}, the dataset has {stages.get('segment')}"
        if stages.get("segment") == SEGMENT_VERSION:
            reason = "other flags, or another segmenter"
        cause = f"layers are made in another way now ({reason})"
    raise JobError(
        f"{total['shards']} of {len(shards)} source shards would be made again, more than a "
        f"tenth: {cause}. Nothing has been changed; if the folder holds another dataset, choose "
        "another --output; if that is meant, add --overwrite rebuild"
    )


def _count_work(
    config: DatasetConfig, staging: Staging, has_same_settings: bool, shard: SourceShard
) -> Counter[str]:
    """Counts the work on a shard; returns an empty counter if the shard is up to date, or if its
    record is damaged.

    Otherwise `shards` is 1, and `added`, `changed`, `removed` and `kept` (changed or not) are
    numbers of images, compared with the record in place. An image counts as changed even if only
    its segmentation has changed. `lost` is 1 if no image differs from the record, because then the
    shard can only be out of date if one of its files is missing.
    """
    found = Survey(staging, config, shard)
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
    added, removed = keys - keys_before, keys_before - keys
    return Counter(
        shards=1,
        added=added.total(),
        changed=len(after) - same - added.total(),
        removed=removed.total(),
        kept=(keys & keys_before).total(),
        lost=int(same == len(after) == len(before)),
    )


def _is_unlike(image: SourceImage, checksums: Checksums) -> bool:
    """Returns whether an image without a known digest must have changed, judged by the state of its
    files."""
    contents = [content for content in contents_of(image) if content is not None]
    return any(checksums.known(each) is None and checksums.is_unlike(each) for each in contents)
