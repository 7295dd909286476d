"""`in9 export`: checks its flags, runs, says what came out."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time

from pipeline.commands.export_figure import export_figure
from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import selected_rows
from pipeline.dataset.latest import reading_store
from pipeline.dataset.manifest import MANIFEST
from pipeline.errors import UsageError
from pipeline.released.export import EXPORT_FOLDER, Exporting, export_split
from pipeline.released.names import class_folder, find_clashes
from pipeline.runtime.here import working_here
from pipeline.runtime.lock import DATASET_LOCK, held
from pipeline.runtime.progress import Progress
from pipeline.storage.files import is_below
from pipeline.storage.store import Store
from transforms.variants import is_picture


def run_export(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code.

    Raises:
      UsageError: wrong usage.
      JobError: the job failed.
    """
    dataset = Dataset.open(reading_store(arguments.dataset))
    _check_split(dataset, arguments.split)
    if arguments.images:
        export_figure(dataset, arguments.split, arguments.images, arguments.to)
        return 0
    target = Store.at(arguments.to)
    _check(dataset, target)
    selected = selected_rows(dataset, arguments.split)
    exporting = Exporting(
        dataset=dataset,
        split=arguments.split,
        target=target,
        clashes=find_clashes((row["key"], row["wnid"]) for row in selected),
        progress=Progress.of(target),
    )
    # The first thing that is written: a run that is killed at once has left an export.
    target.update(f"{EXPORT_FOLDER}/mark", b"export\n")
    with held(target, DATASET_LOCK) as mine:
        mine.remove_temporary()
        pictures = len(selected) * len(dataset.variants)
        started = time.monotonic()
        with working_here(exporting.progress, target.log(f"export-{os.getpid()}")):
            exporting.progress.note_total("export", arguments.split, pictures)
            exported, removed = export_split(dataclasses.replace(exporting, target=mine))
        seconds = time.monotonic() - started
    print(f"{arguments.split}: {len(selected)} images, {len(dataset.variants)} variants")
    if exported or removed:
        line = f"done now: {exported} files written"
        print(f"{line}, {removed} removed" if removed else line)
        print(f"time: {seconds:.1f} s")
    else:
        print("nothing to do: everything is up to date")
    for note in _notes(dataset, {row["label"] for row in selected}, target.is_remote):
        print(note)
    print(f"export: {target.root} of dataset {dataset.manifest.fingerprint[:12]}")
    return 0


def _check_split(dataset: Dataset, split: str) -> None:
    splits = dataset.manifest.config.split
    if split not in splits:
        raise UsageError(f"--split {split} is not in the dataset, which has {', '.join(splits)}")


def _check(dataset: Dataset, target: Store) -> None:
    if target.exists(""):
        raise UsageError(f"--to {target.root} is not a folder")
    if is_below(target.root, dataset.store.root):
        raise UsageError(f"--to {target.root} lies inside --dataset {dataset.store.root}")
    if target.exists(MANIFEST):
        raise UsageError(f"--to {target.root} is a dataset; choose another folder")
    if not target.has_folder(EXPORT_FOLDER) and target.sizes(""):
        raise UsageError(
            f"--to {target.root} is not empty and holds no export; choose another folder"
        )


def _notes(dataset: Dataset, labels: set[int], is_remote: bool) -> list[str]:
    """What readers of the export should know."""
    notes = []
    classes = enumerate(dataset.taxonomy.names)
    folders = [class_folder(label, name) for label, name in classes if label not in labels]
    if folders and is_remote:
        notes.append(
            f"no images in {', '.join(folders)}: make these folders in a copy of it, since readers "
            "number the folders that are there"
        )
    elif folders:
        notes.append(
            f"no images in {', '.join(folders)}: empty folders, so that others keep their numbers "
            "(ImageFolder wants allow_empty=True)"
        )
    pictures = any(is_picture(name) for name in dataset.variants)
    if dataset.manifest.config.compose.encoding == "png" and pictures:
        notes.append("the .JPEG files hold PNG, as the dataset does: readers go by the content")
    return notes
