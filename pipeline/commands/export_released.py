"""`in9 export`: writes a dataset in the released layout, or with `--images` a figure of images."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import time

from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import selected_rows
from pipeline.dataset.latest import reading_store
from pipeline.dataset.manifest import MANIFEST
from pipeline.display.pictures import find_samples
from pipeline.errors import JobError, UsageError, counted
from pipeline.released.export import EXPORT_FOLDER, ExportPlan, export_split
from pipeline.released.names import class_folder, find_clashes
from pipeline.runtime.leftovers import removed_if_refused
from pipeline.runtime.local_loop import run_locally
from pipeline.runtime.lock import DATASET_LOCK, held
from pipeline.runtime.progress import Progress
from pipeline.storage.files import is_below
from pipeline.storage.store import Store
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image
from transforms.hashing import text_bytes
from transforms.variants import PAPER_NAMES, draws_of, is_picture


def run_export(arguments: argparse.Namespace) -> int:
    """Runs `in9 export`; returns the exit code.

    Raises:
      UsageError: there is no finished dataset, or a flag is wrong.
      JobError: the job failed, or another one is writing the folder.
    """
    dataset = Dataset.open(reading_store(arguments.dataset))
    splits = dataset.manifest.config.split
    if arguments.split not in splits:
        raise UsageError(
            f"--split {arguments.split} is not in the dataset, which has {', '.join(splits)}"
        )
    if arguments.images:
        export_figure(dataset, arguments.split, arguments.images, arguments.to)
        return 0
    target = Store.at(arguments.to)
    _check(dataset, target)
    selected = selected_rows(dataset, arguments.split)
    exporting = ExportPlan(
        dataset=dataset,
        split=arguments.split,
        target=target,
        clashes=find_clashes((row["key"], row["wnid"]) for row in selected),
        progress=Progress.for_store(target),
    )
    with removed_if_refused(target, EXPORT_FOLDER), contextlib.ExitStack() as stack:
        # Written first, so that the next run recognizes the folder as an export if this one is
        # killed.
        target.update(f"{EXPORT_FOLDER}/mark", b"export\n")
        locked = stack.enter_context(held(target, DATASET_LOCK))
        locked.remove_temporary()
        pictures = len(selected) * len(dataset.variants)
        started = time.monotonic()
        with run_locally(exporting.progress, target.log(f"export-{os.getpid()}")):
            exporting.progress.note_total("export", arguments.split, pictures)
            exported, removed = export_split(dataclasses.replace(exporting, target=locked))
        seconds = time.monotonic() - started
    variants = counted(len(dataset.variants), "variant")
    print(f"{arguments.split}: {counted(len(selected), 'image')}, {variants}")
    if exported or removed:
        line = f"done now: {counted(exported, 'file')} written"
        print(f"{line}, {removed} removed" if removed else line)
        print(f"time: {seconds:.1f} s")
    else:
        print("nothing to do: everything is up to date")
    for note in _notes(dataset, {row["label"] for row in selected}, target.is_remote):
        print(note)
    print(f"export: {target.root} of dataset {dataset.manifest.fingerprint[:12]}")
    return 0


def _check(dataset: Dataset, target: Store) -> None:
    if target.exists(""):
        raise UsageError(f"--to {target.root} is not a folder")
    if is_below(target.root, dataset.store.root):
        raise UsageError(f"--to {target.root} lies inside --dataset {dataset.store.root}")
    if target.exists(MANIFEST):
        raise UsageError(f"--to {target.root} is a dataset; choose another folder")
    if not target.has_folder(EXPORT_FOLDER) and not target.is_empty():
        raise UsageError(
            f"--to {target.root} is not empty and holds no export; choose another folder"
        )


def _notes(dataset: Dataset, labels: set[int], is_remote: bool) -> list[str]:
    """Lists what readers of the export should know."""
    notes = []
    names = dataset.taxonomy.names
    folders = [
        class_folder(label, name, len(names))
        for label, name in enumerate(names)
        if label not in labels
    ]
    if folders and is_remote:
        notes.append(
            f"no images in {', '.join(folders)}: create these folders in a local copy, because "
            "readers number the folders that they find"
        )
    elif folders:
        notes.append(
            f"no images in {', '.join(folders)}: these folders are empty, so that the others keep "
            "their numbers (ImageFolder needs allow_empty=True)"
        )
    draws = max(map(len, draws_of(dataset.variants).values()))
    if draws > 1:
        notes.append(
            f"each folder of a mixed variant holds one of {draws} draws (mixed_rand the first, "
            "mixed_rand_r1 the second); the tables of in9 take all draws together"
        )
    pictures = any(is_picture(name) for name in dataset.variants)
    if dataset.manifest.config.compose.encoding == "png" and pictures:
        notes.append("the .JPEG files hold PNG data, as in the dataset; readers go by the content")
    return notes


def export_figure(dataset: Dataset, split: str, keys: tuple[str, ...], path: str) -> None:
    """Writes a figure of images in all their variants.

    Args:
      dataset: the dataset.
      split: split of the images.
      keys: keys of the images, one for each row of the figure.
      path: path of the figure, whose ending decides its format.

    Raises:
      UsageError: an image is not in the dataset, or the format is unknown.
      JobError: a picture is broken.
    """
    from pipeline.display.versions import FIGURE_MARK, KINDS, versions_figure

    folder, name = os.path.split(path)
    kind = name.rpartition(".")[2].lower().replace("jpeg", "jpg")
    if kind not in KINDS:
        raise UsageError(f"--to {path}: --images needs a file that ends in .{', .'.join(KINDS)}")
    target = Store.at(folder or ".")
    variants = dataset.picture_variants
    samples = {name: find_samples(dataset, split, name, keys) for name in variants}
    for key in keys:
        if key not in samples[variants[0]]:
            raise UsageError(
                f"--images {key}: split {split} of the dataset does not have this image"
            )
    try:
        rows = [[decode_image(samples[variant][key].image) for variant in variants] for key in keys]
    except (UndecodableError, TooManyPixelsError) as error:
        raise JobError(f"a stored picture is broken ({error}); see: in9 verify") from error
    heads = [PAPER_NAMES.get(variant, variant) for variant in variants]
    if target.exists(name) and text_bytes(FIGURE_MARK) not in target.read(name):
        raise UsageError(f"--to {target.path(name)} is no figure of in9; choose another name")
    target.write(name, versions_figure(heads, rows, kind))
    print(f"figure: {target.path(name)}")
