"""`in9 import`: turns data in the released layout into a dataset.

listing -> Examine -> Pool -> Write -> Commit

With `--dataset`, it takes up pictures from outside as variants of a dataset instead.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator

import msgspec

from pipeline.commands.command_line import flags_as
from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.dataset.manifest import (
    About,
    Manifest,
    Outside,
    StatedFlags,
    last_manifest,
    read_manifest,
    stated,
    writing_store,
)
from pipeline.dataset.records import STAGING, Staging, chosen_images
from pipeline.errors import UsageError, counted, refuse_first, shown_bytes
from pipeline.generate.commit import commit, keep_outside, read_prepared, restate
from pipeline.jobs.messages import describe_images
from pipeline.released.archive_listing import (
    IMPORT_FOLDER,
    ReleasedArchive,
    is_packed,
    list_files,
    read_listing,
)
from pipeline.released.paper_archive import AUTHORS, PAPER, find_archive, is_archive
from pipeline.released.write_shards import (
    BackgroundPool,
    ImportPlan,
    ShardWriter,
    examine_shard,
    stage_variant,
)
from pipeline.runtime.lock import DATASET_LOCK, locked, removed_if_refused
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress, run_locally
from pipeline.storage.files import absolute, is_below
from pipeline.storage.interface import read_ahead
from pipeline.storage.state_files import read_json
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.taxonomy import imagenet9
from transforms.variants import ONLY_BG_T, outside_variant

_IMPORT_RECORD = f"{WORK_FOLDER}/import.json"
"""File that records which listing was imported, so that the next run can tell that nothing is left
to do."""


class ImportFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags of `in9 import`, besides those that state what its card says."""

    source: str = msgspec.field(name="from")
    output: str
    split: tuple[str, ...]
    formats: tuple[str, ...]
    images_per_shard: int


def run_import(arguments: argparse.Namespace) -> int:
    """Runs `in9 import`; returns the exit code."""
    if arguments.dataset or arguments.variant:
        return _import_outside(arguments)
    refuse_first(
        {
            f"{flag} is required (see: in9 import --help)": not value
            for flag, value in (
                ("--from DIR|TAR|paper:", vars(arguments)["from"]),
                ("--output DIR", arguments.output),
            )
        }
    )
    flags = flags_as(ImportFlags, arguments)
    store, source = writing_store("output", flags.output), absolute(flags.source)
    _check_output(store, source)
    if flags.source == PAPER:
        source = find_archive()
    # Listing a folder writes nothing, so do it now. An archive must be unpacked into the output, so
    # it waits for the lock.
    released = None if is_packed(source) else _listing(flags, source, store)
    with removed_if_refused(store, IMPORT_FOLDER), contextlib.ExitStack() as stack:
        # Written first: even if this run is killed right away, the folder is recognisable as an
        # import.
        store.update(f"{IMPORT_FOLDER}/mark", b"import\n")
        store = stack.enter_context(locked(store, DATASET_LOCK))
        try:
            released = released or _listing(flags, source, store)
        except UsageError:
            _forget_unpacked(store)
            raise
        started = time.monotonic()
        prepared = read_prepared(store)
        manifest = prepared or last_manifest(store)
        about = stated(flags_as(StatedFlags, arguments), manifest)
        if not about.creator and is_archive(source):
            about = dataclasses.replace(about, creator=AUTHORS)
        # If an import of pictures from outside was killed, files of the same size may be others.
        if is_new := (
            not manifest
            or bool(prepared and prepared.outside)
            or not _is_imported(store, released, manifest)
        ):
            _run(released, store, about)
        else:
            manifest = dataclasses.replace(manifest, about=about)
            # The one in place also differs if a run was killed while it replaced it.
            if is_new := read_manifest(store) != manifest:
                restate(store, imagenet9(), manifest)
        _forget_unpacked(store)
    _print_summary(store, released, manifest, is_new, time.monotonic() - started)
    return 0


def _import_outside(arguments: argparse.Namespace) -> int:
    """Imports pictures from outside as variants of a dataset; returns the exit code."""
    refuse_first(
        {
            f"{name} does not go with --dataset and --variant": name in arguments.given
            for name in ("from", "output", "split", "formats", "images_per_shard")
        }
        | {
            "--dataset DIR is required with --variant": not arguments.dataset,
            "--variant NAME=DIR|TAR is required with --dataset": not arguments.variant,
        }
    )
    started, store = time.monotonic(), writing_store("dataset", arguments.dataset)
    entries = _dataset_in(store).config.compose.variants
    given = [each.partition("=")[::2] for each in arguments.variant]
    try:
        sources = {outside_variant(name, entries): absolute(path) for name, path in given if path}
    except ValueError as error:
        raise UsageError(f"--variant {error}") from error
    refuse_first(
        {"expected NAME=DIR or NAME=TAR, and each name once": len(sources) < len(given)}
        | {
            f"{name}={path} lies inside --dataset {store.root}": is_below(path, store.root)
            for name, path in sources.items()
        },
        "--variant: ",
    )
    with locked(store, DATASET_LOCK) as store:
        dataset, staging = _dataset_in(store), Staging(store, f"{IMPORT_FOLDER}/outside")
        try:
            staged = {
                str(name): stage_variant(dataset, name, source, staging)
                for name, source in sources.items()
            }
            chosen = (
                (split, number, chosen_images(dataset.index_of_shard(split, number)))
                for split in dataset.config.split
                for number in dataset.shards(split)
            )
            kept, images = keep_outside(store, dataset.manifest.with_outside({}), chosen)
            new = {
                name: one
                for name, (pictures, *_) in staged.items()
                for one in [Outside(images, pictures)]
                if kept.outside.get(name) != one
            }
            files = [file for name in new for file in staged[name][1]]
            manifest = dataclasses.replace(
                kept.with_outside(
                    kept.outside | new, *kept.files_of(*kept.outside.keys() - new), *files
                ),
                about=stated(flags_as(StatedFlags, arguments), dataset.manifest),
            )
            if is_new := read_manifest(store) != manifest:
                moved = ((staging.staged(file.path), file.path) for file in files)
                restate(store, dataset.taxonomy, manifest, moved)
        finally:
            store.delete_tree(IMPORT_FOLDER)
    print(
        "\n".join(
            [
                *describe_images(manifest, had=dataset.manifest.outside),
                *(
                    f"{name}: {counted(number, 'picture')} with a named background"
                    for name, (*_, number) in staged.items()
                    if number
                ),
                f"time: {time.monotonic() - started:.1f} s"
                if is_new
                else "nothing to do: everything is up to date",
                f"dataset {manifest.fingerprint[:12]}: in9 evaluate --dataset {store.root}",
            ]
        )
    )
    return 0


def _dataset_in(store: Store) -> Dataset:
    """Opens a dataset, also one in which an import of pictures from outside was killed.

    Such an import has written no file of another variant.
    """
    states = [one for one in (last_manifest(store), read_prepared(store)) if one]
    is_resumed = len({one.made or one.fingerprint for one in states}) < len(states)
    return Dataset(store, states[0]) if is_resumed else Dataset.open(store)


def _forget_unpacked(store: Store) -> None:
    """Removes the unpacked archive, which only a run that was interrupted needs again."""
    store.delete_all(p for p in list(store.walk(IMPORT_FOLDER)) if p.endswith(".tar"))


def _check_output(store: Store, source: str) -> None:
    store.refuse_file("--output")
    manifest = last_manifest(store)
    is_ours = manifest.config.is_imported if manifest else store.has_folder(IMPORT_FOLDER)
    refuse_first(
        {
            f"lies inside --from {source}": is_below(store.root, source),
            "is a dataset that was not imported; choose another folder": bool(manifest)
            and not is_ours,
            "is not empty and holds no dataset; choose another folder": not is_ours
            and not store.is_empty(),
        },
        f"--output {store.root} ",
    )


def _listing(flags: ImportFlags, source: str, store: Store) -> ReleasedArchive:
    return read_listing(
        source,
        list_files(source, store),
        imagenet9(),
        splits=flags.split,
        formats=flags.formats,
        images_per_shard=flags.images_per_shard,
    )


def _is_imported(store: Store, released: ReleasedArchive, manifest: Manifest) -> bool:
    record = {"listing": released.fingerprint, "dataset": manifest.made or manifest.fingerprint}
    return read_json(store, _IMPORT_RECORD, dict[str, str]) == record and all(
        size == file.bytes
        for file, size in zip(
            manifest.files, store.sizes_of([file.path for file in manifest.files]), strict=True
        )
    )


def _run(released: ReleasedArchive, store: Store, about: About) -> None:
    staging = Staging(store, f"{STAGING}/{released.config.fingerprint()}")
    job = ImportPlan(released.config, staging, imagenet9(), Progress.for_store(store))
    with run_locally(job.progress, store.log(f"import-{os.getpid()}")):
        for totals in {shard.totals.split: shard.totals for shard in released.shards}.values():
            for stage in ("examine", "import"):
                job.progress.note_total(stage, totals.split, totals.listed)
        examining = read_ahead(
            lambda shard: examine_shard(job, shard), released.shards, usable_cores()
        )
        examined = [shard for _, shard in examining]
        written = []
        for split in job.config.split:
            shards = [shard for shard in examined if shard.listed.totals.split == split]
            writer = ShardWriter(job, BackgroundPool.from_shards(shards))
            written += [shard for _, shard in read_ahead(writer.write, shards, usable_cores())]
        commit(job.config, store, job.taxonomy, written, about)
    manifest = Dataset.open(store).manifest
    record = {"listing": released.fingerprint, "dataset": manifest.made or manifest.fingerprint}
    store.write(_IMPORT_RECORD, shown_bytes(json.dumps(record, sort_keys=True)))


def _print_summary(
    store: Store, released: ReleasedArchive, before: Manifest | None, is_new: bool, seconds: float
) -> None:
    dataset = Dataset.open(store)
    backgrounds = [
        line
        for split in dataset.manifest.config.split
        for line in _background_lines(dataset, split)
    ]
    print(
        "\n".join(
            [*describe_images(dataset.manifest, had=before.outside if before else ()), *backgrounds]
        )
    )
    if dataset.manifest.config.compose.mixed and ONLY_BG_T not in dataset.variants:
        print(
            "only_bg_t is missing, so backgrounds cannot be identified; intervals treat every "
            "background as unique, and are too narrow where pictures share one"
        )
    if released.ignored:
        print(f"not imported: {', '.join(released.ignored)}")
    print(f"time: {seconds:.1f} s" if is_new else "nothing to do: everything is up to date")
    print(f"dataset {dataset.manifest.fingerprint[:12]}: in9 evaluate --dataset {store.root}")


def _background_lines(dataset: Dataset, split: str) -> Iterator[str]:
    """Yields a line per variant on true backgrounds: number found, and wrong file names."""
    selected = selected_rows(dataset, split)
    for variant in dataset.manifest.config.compose.mixed:
        found = [row for row in selected if row[f"{variant}_bg_key"] is not None]
        misnamed = sum(row[f"{variant}_bg_key"] != row[f"{variant}_bg_named"] for row in found)
        names = f"; {misnamed or 'no'} file names are wrong" if found else ""
        yield (
            f"{split} {variant}: found the true background of {len(found)} of "
            f"{counted(len(selected), 'image')}{names}"
        )
