"""Totals: what all shards of a dataset add up to, taken one at a time, in any order."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import COMPOSE_VERSION, fingerprint
from pipeline.dataset.manifest import Manifest, library_versions, stage_versions
from pipeline.dataset.records import ACCEPTED, Record
from pipeline.errors import JobError
from pipeline.generate.scenes import SceneTable
from pipeline.generate.shards import OutputShard, SourceShard, SplitTotals
from pipeline.storage.store import FileDigest
from transforms.taxonomy import Taxonomy, imagenet9

Moves = list[tuple[str, str]]
"""Files to move, (where one lies, final path)."""


@dataclasses.dataclass
class _Split:
    """What has arrived of a split."""

    totals: SplitTotals
    sources: list[int] = dataclasses.field(default_factory=list)
    segmented: int = 0
    outputs: list[int] = dataclasses.field(default_factory=list)
    images: int = 0
    statuses: Counter[str] = dataclasses.field(default_factory=Counter)
    selected: Counter[int] = dataclasses.field(default_factory=Counter)
    of_sample: int = 0

    def add(self, shard: SourceShard | OutputShard) -> None:
        """Adds a shard."""
        if isinstance(shard, SourceShard):
            self.sources.append(shard.shard)
            self.segmented += shard.segmented
            return
        self.outputs.append(shard.shard)
        self.images += shard.images
        self.statuses.update(shard.statuses)
        self.selected.update(shard.selected)
        self.of_sample += shard.of_sample


def add_up(
    config: DatasetConfig, shards: Iterable[SourceShard | OutputShard], taxonomy: Taxonomy
) -> tuple[Manifest, list[Moves]]:
    """Adds up the shards of all splits: source shards as they were segmented, where the dataset
    has any, and output shards as they were composed.

    Returns:
      (manifest without the dataset card's files, what is to be moved of each shard, its record as
      the last).

    Raises:
      JobError: a split, a shard or an image is missing.
    """
    found: dict[str, _Split] = {}
    fingerprints: list[list[str | int]] = []
    files: list[FileDigest] = []
    moves: list[Moves] = []
    scenes: SceneTable | None = None

    def add_files(record: Record) -> None:
        files.extend(file for file in record.files if not _is_dropped(config, file.path))
        left = [
            (source, target)
            for target, source in record.where.items()
            if source != target and not _is_dropped(config, target)
        ]
        if left:
            moves.append(left)

    for shard in shards:
        totals = shard.totals
        found.setdefault(totals.split, _Split(totals)).add(shard)
        add_files(shard.record)
        if isinstance(shard, OutputShard):
            fingerprints.append([totals.split, shard.shard, shard.record.fingerprint])
            scenes = scenes or shard.scenes
    if scenes is not None:
        add_files(scenes.record)
    counts, images, rejections, samples = {}, {}, {}, {}
    for split in config.split:
        if split not in found:
            raise JobError(f"{split}: no shard arrived. Run the same command again to go on")
        of_split = found[split]
        _check_complete(config, of_split)
        per_class = {name: of_split.selected[n] for n, name in enumerate(taxonomy.names)}
        counts[split] = of_split.totals.counts
        images[split] = _images(config, of_split)
        rejections[split] = {
            status: n for status, n in sorted(of_split.statuses.items()) if status != ACCEPTED
        }
        samples[split] = dict.fromkeys(config.compose.composed, per_class)
    manifest = Manifest(
        config=config,
        fingerprint=fingerprint(config.fingerprint(), COMPOSE_VERSION, sorted(fingerprints)),
        libraries=library_versions(),
        shards=counts,
        images=images,
        rejections=rejections,
        samples=samples,
        files=tuple(sorted(files, key=lambda file: file.path)),
        stages=stage_versions(config),
        taxonomy=None if taxonomy == imagenet9() else taxonomy,
        backgrounds={} if scenes is None else dict(scenes.statuses),
    )
    return manifest, moves


def _check_complete(config: DatasetConfig, found: _Split) -> None:
    """Raises JobError if shards or images of a split were lost or repeated on the way."""
    totals = found.totals
    if not config.is_imported:
        totals.check_complete(sorted(found.sources), totals.counts.source, found.segmented)
    totals.check_complete(sorted(found.outputs), totals.counts.output, found.images)


def _images(config: DatasetConfig, found: _Split) -> dict[str, int]:
    """What the manifest says of a split's images."""
    statuses, totals = found.statuses, found.totals
    return {
        "listed": totals.listed,
        **({"objects": statuses.total()} if config.segment.objects == "each" else {}),
        "outside_taxonomy": totals.outside,
        "other_files": totals.other_files,
        "accepted": statuses[ACCEPTED],
        "rejected": statuses.total() - statuses[ACCEPTED],
        "selected": found.selected.total(),
        **({"of_sample": found.of_sample} if found.of_sample else {}),
    }


def _is_dropped(config: DatasetConfig, path: str) -> bool:
    return config.layers == "drop" and path.startswith("layers/") and path.endswith(".tar")
