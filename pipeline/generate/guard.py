"""The guard before a rebuild: stops a job that would make much of a dataset again before it begins.

A schedule calls the same command for years. If its input was moved, mounted empty or rewritten, the
job would segment everything again and replace a good dataset. So List counts how many source shards
of an existing dataset would be made again, and stops the job if there are more than a tenth, unless
it was told to go on. Names, records, and sizes and times of files are enough for this: no image is
read.
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
"""Largest share of source shards to make again without `--overwrite rebuild`; one shard is always
allowed, unless none of the dataset's images is in the input any more."""


def check_rebuild(
    stages: Mapping[str, Any],
    shards: Sequence[SourceShard],
    config: DatasetConfig,
    staging: Staging,
    renumbered: Sequence[SourceShard] = (),
) -> None:
    """Counts the source shards of an existing dataset that would be made again.

    Args:
      stages: stages of the existing dataset, from its manifest.
      shards: source shards of all splits that the dataset has, with its numbers of shards.
      config: of the new dataset.
      staging: staging folder of the layers.
      renumbered: the same images with the new numbers of shards, if these are to change.

    Raises:
      JobError: too many would be made again; the message says why.
      OSError: a record cannot be read.
    """
    has_same_settings = stages.get("segment_fingerprint") == config.segment.fingerprint()
    ahead = REQUESTS_IN_FLIGHT if staging.store.is_remote else 0
    count_work = functools.partial(_count_work, config, staging, has_same_settings)
    if renumbered and not any(work for _, work in read_ahead(count_work, renumbered, ahead)):
        return  # All are made, and perhaps half in place, because Commit was killed.
    total = sum((work for _, work in read_ahead(count_work, shards, ahead)), Counter[str]())
    is_another_input = total["shards"] == len(shards) and total["removed"] and not total["kept"]
    if total["shards"] <= max(1, REBUILT_SHARE * len(shards)) and not is_another_input:
        return
    cause = "{added} images added, {changed} changed, {removed} removed".format_map(total)
    if total["lost"]:
        cause += f"; files of {total['lost']} are missing"
    if not has_same_settings:
        reason = f"segment stage {SEGMENT_VERSION}, the dataset has {stages.get('segment')}"
        if stages.get("segment") == SEGMENT_VERSION:
            reason = "other flags, or another segmenter"
        cause = f"layers are made in another way now ({reason})"
    raise JobError(
        f"{total['shards']} of {len(shards)} source shards would be made again, more than a "
        f"tenth: {cause}. Nothing has been changed; if that is meant, add --overwrite rebuild"
    )


def _count_work(
    config: DatasetConfig, staging: Staging, has_same_settings: bool, shard: SourceShard
) -> Counter[str]:
    """Counts what would be made again of a shard; returns an empty counter if it is up to date.

    Otherwise `shards` is 1, and `added`, `changed`, `removed` and `kept` (changed or not) are
    numbers of images, compared with the record in place. An image counts as changed even if only
    its segmentation has changed. `lost` is 1 if all images are the same, so that only files can be
    missing.
    """
    store, path = staging.store, layer_record(shard.totals.split, shard.shard)
    checksums = Checksums.for_shard(store, shard.totals.split, shard.shard)
    digests = [known_digest(image, config.segment, checksums.known) for image in shard.images]
    find = functools.partial(
        find_layers, staging, shard, config=config.segment, need_files=config.layers == "keep"
    )
    if find(digests):
        return Counter()
    columns = ["key", "object", "source_digest"]
    rows = read_intact(store, path, lambda: read_rows(store, path, columns))
    if rows is None and store.exists(path):
        return Counter()  # A damaged record has to be made again, whatever has become of the input.
    before = [(source_key(row), row["source_digest"]) for row in rows or () if is_first(row)]
    if None in digests and has_same_settings:
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
        kept=(keys & keys_before).total(),
        lost=int(same == len(after) == len(before)),
    )


def _is_unlike(image: SourceImage, checksums: Checksums) -> bool:
    """Returns whether an image without a known digest must have changed, going by its files."""
    contents = [content for content in contents_of(image) if content is not None]
    return any(checksums.known(each) is None and checksums.is_unlike(each) for each in contents)
