"""Commit: puts finished shards in place and writes the manifest, last.

    Prepare -> Move -> Finish

Prepare checks that the new dataset is complete, then moves the old manifest aside and removes the
old records. Move puts files in place; all workers take part, because on object storage every move
is a copy. Finish checks that all files have arrived, and writes the manifest. Each step can be
repeated at any point, even after a later step: finished work stays finished, and no old file is
removed before all new files are known to be complete.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator

from pipeline.dataset.card import card_files
from pipeline.dataset.config import COMPOSE_VERSION, DatasetConfig
from pipeline.dataset.manifest import (
    MANIFEST,
    NOTHING_STATED,
    PREVIOUS_MANIFEST,
    About,
    Manifest,
    last_manifest,
    library_versions,
    read_manifest,
    stage_versions,
)
from pipeline.dataset.records import ACCEPTED, CARD_FILES, DATA_FOLDERS, STAGING, Record
from pipeline.errors import JobError, shown_bytes
from pipeline.generate.origin import Origin
from pipeline.generate.recipe import RECIPE_COPY
from pipeline.generate.scenes import SceneTable
from pipeline.generate.shard_elements import OutputShard, SourceShard, SplitTotals
from pipeline.inputs.source_images import Checksums
from pipeline.runtime.lock import fenced_for_job, locked
from pipeline.runtime.progress import count, timed
from pipeline.runtime.workers import Step
from pipeline.storage.state_files import read_intact
from pipeline.storage.store import WORK_FOLDER, FileDigest, Store
from transforms.hashing import fingerprint
from transforms.taxonomy import Taxonomy, imagenet9

PREPARED_MANIFEST = f"{STAGING}/manifest.json"
"""The new manifest while files are moved; it does not list the dataset card's files yet. As long as
it exists, no record is removed, because the record may be a new one."""
INPUT_NOTE = f"{WORK_FOLDER}/input.json"
"""File that notes the --input of the dataset in place, empty for the sample. The location is not
part of the dataset, because the same images may lie elsewhere next time."""
PREPARE_LOCK = f"{WORK_FOLDER}/lock-prepare"
"""Lock for Prepare, because a runner may give this step to several workers."""
_MOVED_AT_ONCE = 1000
"""Approximate number of files in one element, which one worker moves."""

Moves = list[tuple[str, str]]
"""Files to move, as (current path, final path)."""


@timed("commit")
def prepare_step(
    element: tuple[None, Iterable[SourceShard | OutputShard | None]],
    config: DatasetConfig,
    store: Store,
    taxonomy: Taxonomy,
    about: About = NOTHING_STATED,
) -> list[tuple[str, Moves]]:
    """Prepares the dataset; (None, all shards) -> (its fingerprint, files to move).

    There is an element for each batch of moves, and at least one, which may be empty.
    """
    fingerprint, moves = prepare(
        config, fenced_for_job(store), taxonomy, filter(None, element[1]), about
    )
    return [(fingerprint, batch) for batch in _in_batches(moves)] or [(fingerprint, [])]


@dataclasses.dataclass(eq=False)
class MoveFiles(Step):
    """(dataset's fingerprint, files to move) -> (the fingerprint, number of files)."""

    store: Store

    @timed("commit")
    def process(self, element: tuple[str, Moves]) -> list[tuple[str, int]]:
        fingerprint, moves = element
        move_files(fenced_for_job(self.store), moves)
        return [(fingerprint, len(moves))]


@timed("commit")
def finish_step(
    element: tuple[str, Iterable[int]],
    store: Store,
    taxonomy: Taxonomy,
    source: str,
    origin: Origin,
) -> str:
    """Finishes the dataset; (its fingerprint, unused numbers of moved files) -> the fingerprint."""
    fenced = fenced_for_job(store)
    recipe = origin.recipe.content() if origin.recipe else None
    fingerprint = finish(fenced, taxonomy, element[0])
    # Noted last, because a run that is refused or fails makes no dataset from its input.
    fenced.update(INPUT_NOTE, shown_bytes(json.dumps(source)))
    if recipe is not None:
        fenced.update(RECIPE_COPY, recipe)
    return fingerprint


def commit(
    config: DatasetConfig,
    store: Store,
    taxonomy: Taxonomy,
    shards: Iterable[SourceShard | OutputShard],
    about: About = NOTHING_STATED,
) -> str:
    """Runs all steps without Beam. Arguments and errors as for `prepare`; returns like `finish`."""
    fingerprint, moves = prepare(config, store, taxonomy, shards, about)
    for batch in _in_batches(moves):
        move_files(store, batch)
    return _finish_with_new_fence(store, taxonomy, fingerprint)


def restate(
    store: Store, taxonomy: Taxonomy, manifest: Manifest, moves: Iterable[tuple[str, str]] = ()
) -> None:
    """Writes the card and the manifest, which has what the maker now states, and no other file.

    It may have other pictures from outside, too, whose files are moved into place. If it is killed,
    `read_prepared` has the new manifest, for which it is called again. What an unfinished job has
    staged stays.
    """
    files = tuple(file for file in manifest.files if file.path not in CARD_FILES)
    prepared = dataclasses.replace(manifest, files=files)
    store.write(PREPARED_MANIFEST, prepared.to_json(), durable=True)
    if store.exists(MANIFEST):
        store.move(MANIFEST, PREVIOUS_MANIFEST)
    store.move_all(moves)
    _finish_with_new_fence(store, taxonomy, manifest.fingerprint, keeps_staged=True)


def _finish_with_new_fence(
    store: Store, taxonomy: Taxonomy, fingerprint: str, *, keeps_staged: bool = False
) -> str:
    # Finish needs a new fence of the same claim: the old fence may remember the manifest that was
    # moved aside, and would then write over that manifest only, which is gone.
    fence = store.fence and dataclasses.replace(store.fence)
    return finish(
        dataclasses.replace(store, fence=fence), taxonomy, fingerprint, keeps_staged=keeps_staged
    )


def prepare(
    config: DatasetConfig,
    store: Store,
    taxonomy: Taxonomy,
    shards: Iterable[SourceShard | OutputShard],
    about: About = NOTHING_STATED,
) -> tuple[str, list[Moves]]:
    """Adds up all shards, moves the manifest aside, and removes the records that new files replace.

    A runner may start this step again while files are moved, or later, when the records in place
    may be new ones. So only one worker at a time prepares, and no worker removes a record once the
    prepared manifest is written.

    Returns:
      (the dataset's fingerprint, the moves that remain for each shard, its record last).

    Raises:
      JobError: a shard, an image or a file is missing, or a file has changed since it was
        committed.
      UsageError: a folder of the dataset is a link.
    """
    shards = list(shards)
    manifest, moves = merge_shards(config, shards, taxonomy)
    chosen = [(o.totals.split, o.shard, o.chosen) for o in shards if isinstance(o, OutputShard)]
    manifest = dataclasses.replace(manifest, about=about)
    with locked(store, PREPARE_LOCK, wait=math.inf) as fenced:
        # The prepared manifest is read first, because Finish writes the final manifest before it
        # removes the prepared one: in this order, at least one of them is seen.
        prepared, old = read_prepared(store), read_manifest(fenced)
        sizes = _file_sizes(fenced)
        manifest, _ = keep_outside(fenced, manifest, chosen)
        remaining = [
            staged for shard in moves if (staged := [move for move in shard if move[0] in sizes])
        ]
        is_same = (
            old is not None
            and _is_same(old, manifest)
            and all(sizes.get(file.path) == file.bytes for file in old.files)
        )
        if is_same and not remaining:
            return manifest.fingerprint, []
        count("commits")
        if prepared == manifest:
            return manifest.fingerprint, remaining
        _check_complete(fenced, manifest, old, moves, sizes)
        # Goes through the job's own fence, so it fails if another job has taken over the dataset.
        store.delete(PREPARED_MANIFEST)
        if fenced.exists(MANIFEST):
            fenced.move(MANIFEST, PREVIOUS_MANIFEST)
        # An old record must never lie beside the files of a new record.
        fenced.delete_all(
            target for shard in remaining for _, target in shard if _is_record(target)
        )
        fenced.write(PREPARED_MANIFEST, manifest.to_json(), durable=True)
    return manifest.fingerprint, remaining


def keep_outside(
    store: Store, manifest: Manifest, chosen: Iterable[tuple[str, int, str]]
) -> tuple[Manifest, str]:
    """Adds to a manifest without variants from outside those of the dataset in place.

    `chosen` has (split, number, `chosen_images`) of each output shard. A variant is left out if it
    is for other images, or its files are not all there. If a commit was interrupted, a file may be
    that of another import, so its content counts, too.

    Returns (the manifest, `Outside.images`).
    """
    config, shards = manifest.config, {s: n.output for s, n in manifest.shards.items()}
    images = fingerprint(
        config.segment.fingerprint(),
        [config.taxonomy, sorted(config.compose.formats)],
        shards,
        sorted(chosen),
    )
    old, is_finished = last_manifest(store) or manifest, store.exists(MANIFEST)
    kept = {
        name: one
        for name, one in old.outside.items()
        if one.images == images
        and name not in map(str, manifest.variants)
        and all(
            store.size(file.path) == file.bytes
            and (is_finished or store.digest(file.path) == file.sha256)
            for file in old.files_of(name)
        )
    }
    return manifest.with_outside(kept, *old.files_of(*kept)), images


def read_prepared(store: Store) -> Manifest | None:
    """Reads the manifest of an unfinished commit; None if missing or damaged: it is made again."""
    return read_intact(
        store, PREPARED_MANIFEST, lambda: Manifest.from_json(store.read(PREPARED_MANIFEST))
    )


def move_files(store: Store, moves: Moves) -> None:
    """Moves files of some shards from staging to their final paths, records last."""
    store.move_all(move for move in moves if not _is_record(move[1]))
    store.move_all(move for move in moves if _is_record(move[1]))


def finish(
    store: Store, taxonomy: Taxonomy, fingerprint: str, *, keeps_staged: bool = False
) -> str:
    """Writes the manifest of a dataset whose files are in place, and removes obsolete files.

    With `keeps_staged`, an unfinished job finds what it has staged. Raises JobError if a file is
    missing, or has another size.
    """
    manifest = read_prepared(store)
    if manifest is not None and manifest.fingerprint == fingerprint:
        sizes = _file_sizes(store)
        for file in manifest.files:
            if sizes.get(file.path) != file.bytes:
                raise _missing(file.path)
        _remove_obsolete(store, manifest)
        files = [*manifest.files]
        for path, data in card_files(manifest, taxonomy):
            store.update(path, data)
            files.append(FileDigest(path, len(data), store.digest(path)))
        files.sort(key=lambda file: file.path)
        manifest = dataclasses.replace(manifest, files=tuple(files))
        store.write(MANIFEST, manifest.to_json(), durable=True)
        store.delete(PREVIOUS_MANIFEST)
    else:
        # Nothing had to be moved, or this step has already run and the runner repeats it. If the
        # prepared manifest is damaged, there is no manifest, and the next run prepares it again.
        manifest = read_manifest(store)
        if manifest is None or manifest.fingerprint != fingerprint:
            raise _missing(MANIFEST)
    if keeps_staged:
        store.delete(PREPARED_MANIFEST)
    else:
        store.delete_tree(STAGING)
        Checksums.forget_others(store, {split: n.source for split, n in manifest.shards.items()})
    store.remove_temporary()
    return fingerprint


def _in_batches(moves: list[Moves]) -> Iterator[Moves]:
    """Yields the moves of whole shards, about `_MOVED_AT_ONCE` files at a time."""
    batch: Moves = []
    for shard in moves:
        batch += shard
        if len(batch) >= _MOVED_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_record(path: str) -> bool:
    return path.endswith(".parquet") and path.startswith(("layers/", "index/"))


def _is_same(old: Manifest, new: Manifest) -> bool:
    """Returns whether manifests describe the same dataset, except for card and library versions."""
    data = tuple(file for file in old.files if file.path not in CARD_FILES)
    return dataclasses.replace(old, files=data, libraries=new.libraries) == new


def _check_complete(
    store: Store,
    manifest: Manifest,
    old: Manifest | None,
    moves: list[Moves],
    sizes: dict[str, int],
) -> None:
    """Checks the new dataset before anything is removed.

    No folder may be a link, every file must exist and have its size, and a file that stays in place
    must be the one that the old manifest lists. When Commit is repeated, some moves are done
    already. `sizes` are in bytes, as `_file_sizes` returns them.
    """
    known = {} if old is None else {file.path: file for file in old.files}
    sources = {target: source for shard in moves for source, target in shard}
    for path in (*(f"{folder}/" for folder in DATA_FOLDERS), *(f.path for f in manifest.files)):
        store.writable_path(path)
    for file in manifest.files:
        source = sources.get(file.path)
        if sizes.get(source if source in sizes else file.path) != file.bytes:
            raise _missing(file.path)
        if source is None and file.path in known and known[file.path] != file:
            raise JobError(
                f"{store.path(file.path)} has changed since it was committed. Remove it "
                "and run the same command again"
            )


def _missing(path: str) -> JobError:
    return JobError(f"{path} is missing or of another size. Run the same command again")


def _file_sizes(store: Store) -> dict[str, int]:
    """Returns the sizes in bytes of all files of a dataset, staged ones included, by path."""
    sizes = {
        path: size
        for folder in (*DATA_FOLDERS, STAGING)
        for path, size in store.sizes(folder).items()
    }
    cards = {path: store.size(path) for path in CARD_FILES}
    return sizes | {path: size for path, size in cards.items() if size is not None}


def _remove_obsolete(store: Store, manifest: Manifest) -> None:
    wanted = {file.path for file in manifest.files}
    for folder in DATA_FOLDERS:
        paths = list(store.walk(folder))
        store.delete_all(path for path in paths if path not in wanted)
        store.prune(folder)


@dataclasses.dataclass
class _ArrivedSplit:
    """Sums over the shards of a split that have reached Commit."""

    totals: SplitTotals
    sources: list[int] = dataclasses.field(default_factory=list)
    segmented: int = 0
    outputs: list[int] = dataclasses.field(default_factory=list)
    images: int = 0
    statuses: Counter[str] = dataclasses.field(default_factory=Counter)
    selected: Counter[int] = dataclasses.field(default_factory=Counter)
    of_sample: int = 0

    def add(self, shard: SourceShard | OutputShard) -> None:
        if isinstance(shard, SourceShard):
            self.sources.append(shard.shard)
            self.segmented += shard.segmented
            return
        self.outputs.append(shard.shard)
        self.images += shard.images
        self.statuses.update(shard.statuses)
        self.selected.update(shard.selected)
        self.of_sample += shard.of_sample


def merge_shards(
    config: DatasetConfig, shards: Iterable[SourceShard | OutputShard], taxonomy: Taxonomy
) -> tuple[Manifest, list[Moves]]:
    """Builds the manifest from the shards of all splits, and lists the files to move.

    Shards come in any order; imported datasets have no source shards. Returns (manifest without the
    card's files, moves of each shard, its record last). Raises JobError if a split, a shard or an
    image is missing.
    """
    arrived: dict[str, _ArrivedSplit] = {}
    fingerprints: list[list[str | int]] = []
    files: list[FileDigest] = []
    moves: list[Moves] = []
    scenes: SceneTable | None = None

    def add_files(record: Record) -> None:
        files.extend(file for file in record.files if not is_dropped(config, file.path))
        staged = [
            (source, target)
            for target, source in record.locations.items()
            if source != target and not is_dropped(config, target)
        ]
        if staged:
            moves.append(staged)

    for shard in shards:
        totals = shard.totals
        arrived.setdefault(totals.split, _ArrivedSplit(totals)).add(shard)
        add_files(shard.record)
        if isinstance(shard, OutputShard):
            fingerprints.append([totals.split, shard.shard, shard.record.fingerprint])
            scenes = scenes or shard.scenes
    if scenes is not None:
        add_files(scenes.record)
    for split in config.split:
        if split not in arrived:
            raise JobError(f"{split}: no shard arrived. Run the same command again to go on")
        sums, counts = arrived[split], arrived[split].totals.counts
        if not config.is_imported:
            sums.totals.check_complete(sorted(sums.sources), counts.source, sums.segmented)
        sums.totals.check_complete(sorted(sums.outputs), counts.output, sums.images)
    sums_of = {split: arrived[split] for split in config.split}
    per_class = {
        split: {name: sums.selected[label] for label, name in enumerate(taxonomy.names)}
        for split, sums in sums_of.items()
    }
    manifest = Manifest(
        config=config,
        fingerprint=fingerprint(config.fingerprint(), COMPOSE_VERSION, sorted(fingerprints)),
        libraries=library_versions(),
        shards={split: sums.totals.counts for split, sums in sums_of.items()},
        images={split: _image_counts(config, sums) for split, sums in sums_of.items()},
        rejections={
            split: {status: n for status, n in sorted(sums.statuses.items()) if status != ACCEPTED}
            for split, sums in sums_of.items()
        },
        samples={
            split: dict.fromkeys(map(str, config.compose.composed), samples)
            for split, samples in per_class.items()
        },
        files=tuple(sorted(files, key=lambda file: file.path)),
        stages=stage_versions(config),
        taxonomy=None if taxonomy == imagenet9() else taxonomy,
        backgrounds={} if scenes is None else dict(scenes.statuses),
        unmatched={
            split: sums.totals.unmatched for split, sums in sums_of.items() if sums.totals.unmatched
        },
    )
    return manifest, moves


def _image_counts(config: DatasetConfig, sums: _ArrivedSplit) -> dict[str, int]:
    statuses, totals = sums.statuses, sums.totals
    return {
        "listed": totals.listed,
        **({"objects": statuses.total()} if config.segment.objects == "each" else {}),
        "outside_taxonomy": totals.outside,
        "other_files": totals.other_files,
        "accepted": statuses[ACCEPTED],
        "rejected": statuses.total() - statuses[ACCEPTED],
        "selected": sums.selected.total(),
        **({"of_sample": sums.of_sample} if sums.of_sample else {}),
    }


def is_dropped(config: DatasetConfig, path: str) -> bool:
    """Returns whether a dataset lacks a file that its records name."""
    return config.layers == "drop" and path.startswith("layers/") and path.endswith(".tar")
