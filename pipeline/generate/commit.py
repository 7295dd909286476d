"""Commit: puts finished shards in place and writes the manifest, last.

    Prepare -> Move -> Finish

Prepare makes sure that all is there, and lets the old manifest and the old records step aside;
Move puts files in place, on as many workers as there are, since on object storage every move is a
copy; Finish looks whether all of them are there, and writes the manifest. Each can be repeated at
any point, after what came next as well: what has been done already stays done, and nothing is
removed before everything new is known to be complete.

Totals: what all shards of a dataset add up to, taken one at a time, in any order.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from pipeline.dataset.card import card_files
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import COMPOSE_VERSION, fingerprint
from pipeline.dataset.manifest import (
    MANIFEST,
    PREVIOUS_MANIFEST,
    Manifest,
    library_versions,
    read_manifest,
    stage_versions,
)
from pipeline.dataset.records import ACCEPTED, Record
from pipeline.dataset.shards import CARD_FILES, DATA_FOLDERS
from pipeline.errors import JobError
from pipeline.generate.scenes import SceneTable
from pipeline.generate.shard_elements import OutputShard, SourceShard, SplitTotals
from pipeline.inputs.checksums import Checksums
from pipeline.runtime.counters import count, timed
from pipeline.runtime.lock import fenced_for_job, held
from pipeline.storage.store import WORK_FOLDER, FileDigest, Store
from transforms.taxonomy import Taxonomy, imagenet9

STAGING = f"{WORK_FOLDER}/staging"
PREPARED_MANIFEST = f"{STAGING}/manifest.json"
"""The new manifest, without its card, while files are moved: it says that nothing old is to be
removed any more."""
PREPARE_LOCK = f"{WORK_FOLDER}/lock-prepare"
"""Held by one of the workers that a runner gives this step to."""
_MOVED_AT_ONCE = 1000
"""Files that one worker moves in a row, about."""


class Commit(beam.PTransform):
    """All SourceShards, segmented, all OutputShards, composed, and one None -> the dataset's
    fingerprint, once.

    The None makes it say so if nothing else arrives.
    """

    def __init__(self, config: DatasetConfig, store: Store, taxonomy: Taxonomy) -> None:
        super().__init__()
        self._config = config
        self._store = store
        self._taxonomy = taxonomy

    def expand(self, shards: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        return (
            shards
            | "Together" >> beam.WithKeys(None)
            | "Gather" >> beam.GroupByKey()
            | "Prepare" >> beam.ParDo(PrepareCommit(self._config, self._store, self._taxonomy))
            | "SpreadMoves" >> beam.Reshuffle()
            | "Move" >> beam.ParDo(MoveFiles(self._store))
            | "AllMoved" >> beam.GroupByKey()
            | "Finish"
            >> beam.ParDo(FinishCommit(self._store, self._taxonomy)).with_output_types(str)
        )


class PrepareCommit(beam.DoFn):
    """(None, all shards) -> (the dataset's fingerprint, files to move): at least one."""

    def __init__(self, config: DatasetConfig, store: Store, taxonomy: Taxonomy) -> None:
        self._config = config
        self._store = store
        self._taxonomy = taxonomy

    @timed("commit")
    def process(
        self, element: tuple[None, Iterable[SourceShard | OutputShard | None]]
    ) -> list[tuple[str, Moves]]:
        shards = (shard for shard in element[1] if shard is not None)
        fingerprint, moves = prepare(
            self._config, fenced_for_job(self._store), self._taxonomy, shards
        )
        return [(fingerprint, some) for some in _in_parts(moves)] or [(fingerprint, [])]


class MoveFiles(beam.DoFn):
    """(the dataset's fingerprint, files to move) -> (the same, their number)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @timed("commit")
    def process(self, element: tuple[str, Moves]) -> list[tuple[str, int]]:
        fingerprint, moves = element
        put_in_place(fenced_for_job(self._store), moves)
        return [(fingerprint, len(moves))]


class FinishCommit(beam.DoFn):
    """(the dataset's fingerprint, anything) -> the fingerprint."""

    def __init__(self, store: Store, taxonomy: Taxonomy) -> None:
        self._store = store
        self._taxonomy = taxonomy

    @timed("commit")
    def process(self, element: tuple[str, Any]) -> list[str]:
        return [finish(fenced_for_job(self._store), self._taxonomy, element[0])]


def commit(
    config: DatasetConfig,
    store: Store,
    taxonomy: Taxonomy,
    shards: Iterable[SourceShard | OutputShard],
) -> str:
    """All steps, one after the other; arguments, result and errors as of these."""
    fingerprint, moves = prepare(config, store, taxonomy, shards)
    for some in _in_parts(moves):
        put_in_place(store, some)
    # Another fence of the same claim: this one may have seen the manifest that has stepped aside,
    # and would write over that one alone.
    fence = store.fence and dataclasses.replace(store.fence)
    return finish(dataclasses.replace(store, fence=fence), taxonomy, fingerprint)


def prepare(
    config: DatasetConfig,
    store: Store,
    taxonomy: Taxonomy,
    shards: Iterable[SourceShard | OutputShard],
) -> tuple[str, list[Moves]]:
    """Adds up all shards, and makes way for what is to be moved.

    A runner may start it again while, or after, its files are moved: then the records that are in
    place may be new ones. So one at a time is at it, and removes no record once the new manifest
    is prepared.

    Returns:
      (the dataset's fingerprint, what is left to be moved of each shard, its record as the last).

    Raises:
      JobError: something is missing, or has changed since it was committed.
      OSError: reading or writing failed.
    """
    manifest, moves = add_up(config, shards, taxonomy)
    with held(store, PREPARE_LOCK, wait=math.inf) as mine:
        # In this order: Finish writes the one before it removes the other.
        prepared, old = read_manifest(store, PREPARED_MANIFEST), read_manifest(mine)
        there = _there(mine)
        staged = [[move for move in shard if move[0] in there] for shard in moves]
        left = [shard for shard in staged if shard]
        if old is not None and not left and _is_same(old, manifest) and _are_there(old, there):
            return manifest.fingerprint, []
        count("commits")
        if prepared == manifest:
            return manifest.fingerprint, left
        _check_complete(mine, manifest, old, moves, there)
        # With the job's own fence: it fails if another job has taken the dataset over.
        store.delete(PREPARED_MANIFEST)
        if mine.exists(MANIFEST):
            mine.move(MANIFEST, PREVIOUS_MANIFEST)
        # A record must never stand beside files that are not its own.
        mine.delete_all(target for shard in left for _, target in shard if _is_record(target))
        mine.write(PREPARED_MANIFEST, manifest.to_json(), durable=True)
    return manifest.fingerprint, left


def put_in_place(store: Store, moves: Moves) -> None:
    """Moves the files of some shards, those that are still staged, and their records last."""
    store.move_all(move for move in moves if not _is_record(move[1]))
    store.move_all(move for move in moves if _is_record(move[1]))


def finish(store: Store, taxonomy: Taxonomy, fingerprint: str) -> str:
    """Writes the manifest of a dataset whose files are in place, and removes what is of no use any
    more; returns the fingerprint.

    Raises:
      JobError: a file is not there.
      OSError: writing failed.
    """
    manifest = read_manifest(store, PREPARED_MANIFEST)
    if manifest is not None and manifest.fingerprint == fingerprint:
        there = _there(store)
        for file in manifest.files:
            if there.get(file.path) != file.bytes:
                raise _missing(file.path)
        _remove_obsolete(store, manifest)
        cards = [store.write(path, data) for path, data in card_files(manifest, taxonomy)]
        files = sorted((*manifest.files, *cards), key=lambda file: file.path)
        manifest = dataclasses.replace(manifest, files=tuple(files))
        store.write(MANIFEST, manifest.to_json(), durable=True)
        store.delete(PREVIOUS_MANIFEST)
    else:
        # Nothing had to be moved, or a runner starts it again.
        manifest = read_manifest(store)
        if manifest is None or manifest.fingerprint != fingerprint:
            raise _missing(MANIFEST)
    store.delete_tree(STAGING)
    Checksums.forget_others(store, {split: n.source for split, n in manifest.shards.items()})
    store.remove_temporary()
    return fingerprint


def _in_parts(moves: list[Moves]) -> Iterator[Moves]:
    """Moves of whole shards, about `_MOVED_AT_ONCE` at a time."""
    part: Moves = []
    for shard in moves:
        part += shard
        if len(part) >= _MOVED_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _is_record(path: str) -> bool:
    return path.endswith(".parquet") and path.startswith(("layers/", "index/"))


def _is_same(old: Manifest, new: Manifest) -> bool:
    """Whether a manifest describes the same dataset, apart from its card's files."""
    data = tuple(file for file in old.files if file.path not in CARD_FILES)
    return dataclasses.replace(old, files=data, libraries=new.libraries) == new


def _are_there(manifest: Manifest, there: dict[str, int]) -> bool:
    """Whether every file of a dataset is where it should be."""
    return all(there.get(file.path) == file.bytes for file in manifest.files)


def _check_complete(
    store: Store,
    manifest: Manifest,
    old: Manifest | None,
    moves: list[Moves],
    there: dict[str, int],
) -> None:
    """Makes sure, before anything is removed, that every file is there and lies in folders of
    ours, and that none of those in place has changed since it was committed.

    Args:
      store: of the dataset.
      manifest: the new one.
      old: the one that is there.
      moves: of all shards; a repeated Commit finds some in place already.
      there: of `_there`.
    """
    known = {} if old is None else {file.path: file for file in old.files}
    waiting = {target: source for shard in moves for source, target in shard}
    for path in (*(f"{folder}/" for folder in DATA_FOLDERS), *(f.path for f in manifest.files)):
        store.writable_path(path)
    for file in manifest.files:
        source = waiting.get(file.path)
        if there.get(source if source in there else file.path) != file.bytes:
            raise _missing(file.path)
        if source is None and file.path in known and known[file.path] != file:
            raise JobError(
                f"{store.path(file.path)} has changed since it was committed. Remove it "
                "and run the same command again"
            )


def _missing(path: str) -> JobError:
    return JobError(f"{path} is missing or of another size. Run the same command again")


def _there(store: Store) -> dict[str, int]:
    """Sizes of all files, by path; a listing of each folder."""
    listed = (store.sizes(folder) for folder in (*DATA_FOLDERS, STAGING))
    there = {path: size for folder in listed for path, size in folder.items()}
    for path in CARD_FILES:
        size = store.size(path)
        if size is not None:
            there[path] = size
    return there


def _remove_obsolete(store: Store, manifest: Manifest) -> None:
    wanted = {file.path for file in manifest.files}
    for folder in DATA_FOLDERS:
        there = list(store.walk(folder))
        store.delete_all(path for path in there if path not in wanted)
        store.prune(folder)


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
            for target, source in record.locations.items()
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
        _check_split(config, of_split)
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


def _check_split(config: DatasetConfig, found: _Split) -> None:
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
