"""Commit: puts finished shards in place and writes the manifest, last.

It is one element's work, and can be repeated at any point: what has been moved already
stays moved, and nothing is removed before everything new is known to be complete.
"""

from __future__ import annotations

import dataclasses
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
from pipeline.generate.shards import OutputShard
from pipeline.inputs.checksums import Checksums
from pipeline.runtime.counters import count, timed
from pipeline.runtime.lock import of_job
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.taxonomy import Taxonomy, imagenet9

STAGING = f"{WORK_FOLDER}/staging"


def build_manifest(
    config: DatasetConfig, shards: list[OutputShard], taxonomy: Taxonomy
) -> Manifest:
    """Adds up the shards of all splits, without the dataset card's files.

    Raises:
      JobError: a split, a shard or an image is missing.
    """
    by_split: dict[str, list[OutputShard]] = {split: [] for split in config.split}
    for shard in shards:
        by_split[shard.totals.split].append(shard)
    counts, images, rejections, samples = {}, {}, {}, {}
    by_object = config.segment.objects == "each"
    for split, found in by_split.items():
        found.sort(key=lambda shard: shard.shard)
        if not found:
            raise JobError(f"{split}: no shard arrived. Run the same command again to go on")
        totals = found[0].totals
        statuses: Counter[str] = Counter()
        selected: Counter[int] = Counter()
        for shard in found:
            statuses.update(shard.statuses)
            selected.update(shard.selected)
        arrived = sum(shard.images for shard in found)
        totals.check_complete([s.shard for s in found], totals.counts.output, arrived)
        objects = {"objects": statuses.total()} if by_object else {}
        accepted = statuses.pop(ACCEPTED, 0)
        of_sample = sum(shard.of_sample for shard in found)
        counts[split] = totals.counts
        images[split] = {
            "listed": totals.listed,
            **objects,
            "outside_taxonomy": totals.outside,
            "other_files": totals.other_files,
            "accepted": accepted,
            "rejected": statuses.total(),
            "selected": selected.total(),
            **({"of_sample": of_sample} if of_sample else {}),
        }
        rejections[split] = dict(sorted(statuses.items()))
        per_class = {name: selected[label] for label, name in enumerate(taxonomy.names)}
        samples[split] = dict.fromkeys(config.compose.composed, per_class)
    scenes = _scenes(shards)
    files = (file for record in _records(shards) for file in record.files)
    kept = (file for file in files if not _is_dropped(config, file.path))
    return Manifest(
        config=config,
        fingerprint=fingerprint(
            config.fingerprint(),
            COMPOSE_VERSION,
            sorted([s.totals.split, s.shard, s.records[-1].fingerprint] for s in shards),
        ),
        libraries=library_versions(),
        shards=counts,
        images=images,
        rejections=rejections,
        samples=samples,
        files=tuple(sorted(kept, key=lambda file: file.path)),
        stages=stage_versions(config),
        taxonomy=None if taxonomy == imagenet9() else taxonomy,
        backgrounds={} if scenes is None else dict(scenes.statuses),
    )


def _scenes(shards: list[OutputShard]) -> SceneTable | None:
    """The table of scenes, which all shards have in common."""
    return next((shard.scenes for shard in shards), None)


def _records(shards: list[OutputShard]) -> Iterator[Record]:
    """Those that name all files: of source and output shards, and the table of scenes."""
    for shard in shards:
        yield from shard.records
    scenes = _scenes(shards)
    if scenes is not None:
        yield scenes.record


def _is_dropped(config: DatasetConfig, path: str) -> bool:
    return config.layers == "drop" and path.startswith("layers/") and path.endswith(".tar")


def _is_record(path: str) -> bool:
    return path.endswith(".parquet") and path.startswith(("layers/", "index/"))


def _same_data(old: Manifest | None, new: Manifest) -> bool:
    """Whether a manifest describes the same dataset, apart from its card's files."""
    if old is None:
        return False
    data = tuple(file for file in old.files if file.path not in CARD_FILES)
    return dataclasses.replace(old, files=data, libraries=new.libraries) == new


class Commit(beam.DoFn):
    """(None, all OutputShards, composed, as a side input) -> the dataset's fingerprint, once."""

    def __init__(self, config: DatasetConfig, store: Store, taxonomy: Taxonomy) -> None:
        self._config = config
        self._store = store
        self._taxonomy = taxonomy

    @timed("commit")
    def process(self, _: Any, shards: Iterable[OutputShard]) -> list[str]:
        return [commit(self._config, of_job(self._store), self._taxonomy, list(shards))]


def commit(
    config: DatasetConfig, store: Store, taxonomy: Taxonomy, shards: list[OutputShard]
) -> str:
    """Puts the shards of all splits in place; returns the dataset's fingerprint.

    Raises:
      JobError: something is missing, or has changed since it was committed.
      OSError: writing failed.
    """
    manifest = build_manifest(config, shards, taxonomy)
    old = read_manifest(store)
    moves = [
        (source, target)
        for record in _records(shards)
        for target, source in record.where.items()
        if source != target and not _is_dropped(config, target)
    ]
    if old is not None and _same_data(old, manifest) and _in_place(store, old, moves):
        manifest = old
    else:
        _check_complete(store, manifest, old, {target: source for source, target in moves})
        _put_in_place(store, manifest, moves)
        cards = [store.write(path, data) for path, data in card_files(manifest, taxonomy)]
        files = sorted((*manifest.files, *cards), key=lambda file: file.path)
        manifest = dataclasses.replace(manifest, files=tuple(files))
        store.write(MANIFEST, manifest.to_json(), durable=True)
        store.delete(PREVIOUS_MANIFEST)
        count("commits")
    store.delete_tree(STAGING)
    Checksums.forget_others(store, {split: n.source for split, n in manifest.shards.items()})
    store.remove_temporary()
    return manifest.fingerprint


def _check_complete(
    store: Store, manifest: Manifest, old: Manifest | None, waiting: dict[str, str]
) -> None:
    """Makes sure, before anything is removed, that every file is there and lies in folders of
    ours, and that none of those in place has changed since it was committed.

    Args:
      store: of the dataset.
      manifest: the new one.
      old: the one that is there.
      waiting: final path to staged path; a repeated Commit finds some in place already.
    """
    known = {} if old is None else {file.path: file for file in old.files}
    there = _there(store)
    for path in (*(f"{folder}/" for folder in DATA_FOLDERS), *(f.path for f in manifest.files)):
        store.own_path(path)
    for file in manifest.files:
        source = waiting.get(file.path)
        if there.get(source if source in there else file.path) != file.bytes:
            raise JobError(f"{file.path} is missing or of another size. Run the same command again")
        if source is None and file.path in known and known[file.path] != file:
            raise JobError(
                f"{store.path(file.path)} has changed since it was committed. Remove it "
                "and run the same command again"
            )


def _put_in_place(store: Store, manifest: Manifest, moves: list[tuple[str, str]]) -> None:
    """Moves what is staged, and removes what is of no use any more. The manifest steps
    aside first: until the new one is there, the folder holds no valid dataset."""
    if store.exists(MANIFEST):
        store.move(MANIFEST, PREVIOUS_MANIFEST)
    staged = store.sizes(STAGING)
    moves = [(source, target) for source, target in moves if source in staged]
    # A record must never stand beside files that are not its own.
    records = [target for _, target in moves if _is_record(target)]
    store.delete_all(records)
    store.move_all(move for move in moves if not _is_record(move[1]))
    store.move_all(move for move in moves if _is_record(move[1]))
    _remove_obsolete(store, manifest)


def _in_place(store: Store, old: Manifest, moves: list[tuple[str, str]]) -> bool:
    """Whether nothing waits in staging, and every file is where it should be."""
    there = _there(store)
    return not any(source in there for source, _ in moves) and all(
        there.get(file.path) == file.bytes for file in old.files
    )


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
