"""`in9 import`: turns data in the released layout into a dataset.

listing -> Examine -> Pool -> Write -> Commit
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections import Counter

from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import writing_store
from pipeline.dataset.manifest import PREVIOUS_MANIFEST, read_manifest
from pipeline.dataset.records import Staging, read_rows
from pipeline.dataset.shards import index_file
from pipeline.errors import UsageError
from pipeline.generate.commit import STAGING, commit
from pipeline.jobs.closing_words import describe_images
from pipeline.released.archive import IMPORT_FOLDER, is_packed, list_files
from pipeline.released.archive_listing import ReleasedArchive, read_listing
from pipeline.released.examine import ImportPlan, examine_shard
from pipeline.released.recover import BackgroundPool
from pipeline.released.write_shards import ShardWriter, mixed_variants
from pipeline.runtime.local_loop import map_shards, run_locally
from pipeline.runtime.lock import DATASET_LOCK, held
from pipeline.runtime.progress import Progress
from pipeline.storage.files import absolute, is_below
from pipeline.storage.state_files import read_json
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.taxonomy import imagenet9

_NOTE = f"{WORK_FOLDER}/import.json"
"""File with the fingerprint of the imported listing, by which the next run knows it is done."""


def run_import(arguments: argparse.Namespace) -> int:
    """Runs `in9 import`; returns the exit code.

    Raises:
      UsageError: wrong usage or unreadable input.
      JobError: the job failed.
    """
    store, source = writing_store("output", arguments.output), absolute(getattr(arguments, "from"))
    _check(store, source)
    # A folder can be listed before anything is written; an archive is unpacked first.
    released = None if is_packed(source) else _listing(arguments, source, store)
    # Written first, so that the folder of a run that is killed at once is known as an import.
    store.update(f"{IMPORT_FOLDER}/mark", b"import\n")
    with held(store, DATASET_LOCK) as store:
        store.remove_temporary()
        released = released or _listing(arguments, source, store)
        started = time.monotonic()
        is_new = not _is_imported(store, released)
        if is_new:
            _run(released, store)
        seconds = time.monotonic() - started
    _print_summary(store, released, is_new, seconds)
    return 0


def _check(store: Store, source: str) -> None:
    if store.exists(""):
        raise UsageError(f"--output {store.root} is not a folder")
    if is_below(store.root, source):
        raise UsageError(f"--output {store.root} lies inside --from {source}")
    manifest = read_manifest(store) or read_manifest(store, PREVIOUS_MANIFEST)
    if manifest is not None and not manifest.config.is_imported:
        raise UsageError(
            f"--output {store.root} is a dataset that was not imported; choose another folder"
        )
    if manifest is None and not store.has_folder(IMPORT_FOLDER) and store.sizes(""):
        raise UsageError(
            f"--output {store.root} is not empty and holds no dataset; choose another folder"
        )


def _listing(arguments: argparse.Namespace, source: str, store: Store) -> ReleasedArchive:
    return read_listing(
        source,
        list_files(source, store),
        imagenet9(),
        splits=arguments.split,
        formats=arguments.formats,
        images_per_shard=arguments.images_per_shard,
    )


def _is_imported(store: Store, released: ReleasedArchive) -> bool:
    manifest = read_manifest(store)
    if manifest is None:
        return False
    note = {"listing": released.fingerprint, "dataset": manifest.fingerprint}
    return read_json(store, _NOTE, dict[str, str]) == note and all(
        size == file.bytes
        for file, size in zip(
            manifest.files, store.sizes_of([file.path for file in manifest.files]), strict=True
        )
    )


def _run(released: ReleasedArchive, store: Store) -> None:
    staging = Staging(store, f"{STAGING}/{released.config.fingerprint()}")
    job = ImportPlan(released.config, staging, imagenet9(), Progress.for_store(store))
    with run_locally(job.progress, store.log(f"import-{os.getpid()}")):
        for totals in {shard.totals.split: shard.totals for shard in released.shards}.values():
            for stage in ("examine", "import"):
                job.progress.note_total(stage, totals.split, totals.listed)
        examined = map_shards(functools.partial(examine_shard, job), released.shards)
        written = []
        for split in job.config.split:
            shards = [shard for shard in examined if shard.shard.totals.split == split]
            written += map_shards(
                ShardWriter(job, BackgroundPool.from_shards(shards)).write, shards
            )
        commit(job.config, store, job.taxonomy, written)
    dataset = Dataset.open(store)
    note = {"listing": released.fingerprint, "dataset": dataset.manifest.fingerprint}
    store.write(_NOTE, json.dumps(note, sort_keys=True).encode())
    store.delete_all(path for path in list(store.walk(IMPORT_FOLDER)) if path.endswith(".tar"))


def _print_summary(store: Store, released: ReleasedArchive, is_new: bool, seconds: float) -> None:
    dataset = Dataset.open(store)
    print("\n".join(describe_images(dataset.manifest)))
    for split in dataset.manifest.config.split:
        for line in _backgrounds(dataset, split):
            print(line)
    if released.ignored:
        print(f"not imported: {', '.join(released.ignored)}")
    print(f"time: {seconds:.1f} s" if is_new else "nothing to do: everything is up to date")
    print(f"dataset {dataset.manifest.fingerprint[:12]}: in9 evaluate --dataset {store.root}")


def _backgrounds(dataset: Dataset, split: str) -> list[str]:
    """Describes for each variant how many true backgrounds were found, how surely, and how many
    file names were wrong."""
    counts: dict[str, Counter[str]] = {
        v: Counter() for v in mixed_variants(dataset.manifest.config)
    }
    worst: dict[str, tuple[float, float]] = {}
    output = dataset.manifest.shards[split].output
    for shard in dataset.shards(split):
        for row in read_rows(dataset.store, index_file(split, shard, output)):
            for variant in counts if row["selected"] else ():
                key, named = row[f"{variant}_bg_key"], row[f"{variant}_bg_named"]
                counts[variant]["images"] += 1
                if key is None:
                    continue
                counts[variant]["found"] += 1
                counts[variant]["renamed"] += key != named
                other = row[f"{variant}_bg_next_difference"]
                best, margin = worst.get(variant, (0.0, float("inf")))
                worst[variant] = (
                    max(best, row[f"{variant}_bg_difference"]),
                    margin if other is None else min(margin, other),
                )
    lines = []
    for variant, n in counts.items():
        line = f"{split} {variant}: true background of {n['found']} of {n['images']} images found"
        if n["found"]:
            line += f", {n['renamed']} of them not the one in the file name; pixels differ by at "
            line += f"most {worst[variant][0]:.1f} of 255, those of the next best background by at "
            line += f"least {worst[variant][1]:.1f}"
        lines.append(line)
    return lines
