"""Commands on a finished dataset.

`in9 export` writes it in the released layout, or the table of answers to fill, or with `--images` a
figure of images; `in9 report` writes tables, figures and page from existing results; `in9 verify`
checks its files against the manifest, and prints the faults.
"""

import argparse
import dataclasses
import functools
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from msgspec.structs import replace

from pipeline.analyses.evaluation.baseline import on_another, open_results, stored_models
from pipeline.analyses.evaluation.tables import (
    describe_stale,
    describe_summaries,
    headline_columns,
)
from pipeline.commands.command_line import flags_as
from pipeline.dataset.card import notes_of
from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.dataset.manifest import (
    MANIFEST,
    PUBLISH_LOCK,
    read_manifest,
    reading_store,
    writing_store,
)
from pipeline.dataset.records import DATA_FOLDERS
from pipeline.errors import (
    JobError,
    UsageError,
    counted,
    did_you_mean,
    escaped_line,
    refuse_first,
)
from pipeline.evaluate.summaries import read_summaries
from pipeline.generate.recipe import RECIPE
from pipeline.jobs.conditions import GateFlags, conclude, gate_from_flags, judge
from pipeline.jobs.publish import check_publishing, describe_published, publish
from pipeline.models.answers import PREFIX
from pipeline.released.export import (
    EXPORT_FOLDER,
    TABLE_SUFFIXES,
    ExportPlan,
    class_folder,
    export_split,
    take_folder,
    write_answer_table,
    write_note,
)
from pipeline.released.waterbirds import plan_waterbirds, write_metadata
from pipeline.released.write_recipe import write_recipe
from pipeline.report.write import describe_report, write_report, write_tables
from pipeline.runtime.flag_types import WATERBIRDS
from pipeline.runtime.lock import (
    DATASET_LOCK,
    TABLES_LOCK,
    current_holder,
    locked,
    removed_if_refused,
)
from pipeline.runtime.progress import run_locally
from pipeline.storage.files import is_below
from pipeline.storage.interface import read_ahead
from pipeline.storage.store import FileDigest, Store, single_file
from pipeline.training.train_plan import choose_splits

_NOT_FOR = {
    "recipe": ("images", "split", *(flag.dest for flag in WATERBIRDS)),
    "waterbirds": ("images", "split"),
}
"""Flags that a layout of an export does not take; the others take none of Waterbirds'."""


class ExportFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags of `in9 export`."""

    given: tuple[str, ...]
    dataset: str
    to: str
    split: str
    layout: str
    images: tuple[str, ...] | None
    variants: tuple[str, ...] | None
    classes: tuple[str, ...] | None
    holdout: float


class ReportFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags of `in9 report`, besides those of its gate."""

    dataset: str
    publish: str | None
    keep: int | None
    results: tuple[str, ...] | None
    columns: tuple[str, ...] | None
    pictures: str


def run_export(arguments: argparse.Namespace) -> int:
    """Runs `in9 export`; returns the exit code.

    Raises:
      UsageError: there is no finished dataset, or a flag is wrong.
      JobError: the job failed, or another one is writing the folder.
    """
    flags = flags_as(ExportFlags, arguments)
    refused = _NOT_FOR.get(flags.layout, [flag.dest for flag in WATERBIRDS])
    if wrong := [name for name in refused if name in flags.given]:
        raise UsageError(f"--layout {flags.layout} takes no --{wrong[0]}; leave --{wrong[0]} out")
    dataset = Dataset.open(reading_store(flags.dataset))
    splits, split = dataset.manifest.config.split, flags.split
    if flags.layout == "recipe":
        _export_recipe(dataset, flags.to)
    elif flags.layout == "waterbirds":
        _export_waterbirds(dataset, flags, arguments.dataset)
    elif split not in splits:
        raise UsageError(f"--split {split} is not in the dataset, which has {', '.join(splits)}")
    elif keys := flags.images:
        # Imported late, because other exports need not wait for what draws.
        from pipeline.commands.show import read_images, write_figure

        write_figure(arguments.to, lambda: read_images(dataset, split, keys))
    elif flags.layout == "answers":
        _export_answers(dataset, split, arguments.to)
    else:
        _export_pictures(dataset, split, flags.to, arguments.dataset)
    return 0


def _export_pictures(dataset: Dataset, split: str, to: str, named: str) -> None:
    """Writes the released layout; `named` is the dataset's folder as the user named it."""
    plan = ExportPlan.of(dataset, split, Store.at(to))
    if strangers := _write_plans([plan], named, write_note):
        print(
            f"not of this export: {counted(len(strangers), 'file')}, such as {strangers[0]}; they "
            "stay, but readers take them for pictures"
        )
    labels = {row["label"] for row in selected_rows(dataset, split)}
    for note in _notes(dataset, labels, plan.target.is_remote):
        print(note)
    print(f"export: {plan.target.root} of dataset {dataset.manifest.fingerprint[:12]}")


def _export_waterbirds(dataset: Dataset, flags: ExportFlags, named: str) -> None:
    train_split, eval_split = choose_splits(dataset, None, None, flags.holdout)
    plans = plan_waterbirds(
        dataset,
        Store.at(flags.to),
        flags.variants or (),
        flags.classes or (),
        (train_split, eval_split or train_split),
        flags.holdout,
    )
    _write_plans(plans, named, write_metadata)
    print(f"export: {plans[0].target.root} of dataset {dataset.manifest.fingerprint[:12]}")


def _write_plans(
    plans: Sequence[ExportPlan], named: str, finish: Callable[[Sequence[ExportPlan]], list[str]]
) -> list[str]:
    """Writes what is planned into one folder, and says so with the lines of `finish`.

    That writes what marks the export as complete. Returns the paths of the files of no export.
    """
    first = plans[0]
    dataset, target, progress = first.dataset, first.target, first.progress
    _check(dataset, target, is_ours=target.exists(first.source))
    with removed_if_refused(target, EXPORT_FOLDER):
        # Written first, so that the next run recognizes the folder as an export if this one is
        # killed.
        take_folder(first, named)
        with (
            locked(target, DATASET_LOCK) as fenced,
            run_locally(progress, target.log(f"export-{os.getpid()}")),
        ):
            started = time.monotonic()
            plans = [dataclasses.replace(plan, target=fenced, progress=progress) for plan in plans]
            for plan in plans:
                progress.note_total("export", plan.split, plan.total)
            written, removed, strangers = zip(*map(export_split, plans), strict=True)
            lines = finish(plans)
    print("\n".join(lines))
    if sum(written) or sum(removed):
        also = f", {sum(removed)} removed" if sum(removed) else ""
        print(
            f"done now: {counted(sum(written), 'file')} written{also}\n"
            f"time: {time.monotonic() - started:.1f} s"
        )
    else:
        print("nothing to do: everything is up to date")
    return [path for of_plan in strangers for path in of_plan]


def _export_recipe(dataset: Dataset, to: str) -> None:
    target = Store.at(to)
    _check(dataset, target, is_ours=target.exists(RECIPE))
    file, masks = write_recipe(dataset, target)
    print(
        f"recipe: {target.path(RECIPE)} of dataset "
        f"{dataset.manifest.with_outside({}).fingerprint[:12]}, {counted(masks, 'mask')}, "
        f"{file.bytes} bytes",
        *(f"not in the recipe, as it comes from outside: {n}" for n in dataset.manifest.outside),
        sep="\n",
    )


def _export_answers(dataset: Dataset, split: str, path: str) -> None:
    """Writes the table of answers to fill."""
    with single_file(path) as (target, name):
        if not name.endswith(TABLE_SUFFIXES) or target.exists(name):
            raise UsageError(
                f"--to {path}: --layout answers needs a new file that ends in "
                f"{' or '.join(TABLE_SUFFIXES)}"
            )
        pictures = write_answer_table(ExportPlan.of(dataset, split, target), name)
    print(
        f"pictures to answer: {pictures}\n"
        f"add a column scores, output or label; then: --models {PREFIX}{path}"
    )


def _check(dataset: Dataset, target: Store, *, is_ours: bool) -> None:
    target.refuse_file("--to")
    refuse_first(
        {
            f"lies inside --dataset {dataset.store.root}": is_below(
                target.root, dataset.store.root
            ),
            "is a dataset; choose another folder": target.exists(MANIFEST),
            "is not empty and holds no export in this layout; choose another folder": not is_ours
            and not target.is_empty(),
        },
        f"--to {target.root} ",
    )


def _notes(dataset: Dataset, labels: set[int], is_remote: bool) -> list[str]:
    """Lists what readers of the export should know."""
    names = dataset.taxonomy.names
    empty = [
        class_folder(label, name, len(names))
        for label, name in enumerate(names)
        if label not in labels
    ]
    advice = (
        "create these folders in a local copy, because readers number the folders that they find"
        if is_remote
        else "these folders are empty, so that the others keep their numbers (ImageFolder needs "
        "allow_empty=True)"
    )
    draws = 1 + max(name.draw for name in dataset.variants)
    notes = {
        f"no images in {', '.join(empty)}: {advice}": bool(empty),
        f"each folder of a mixed variant holds one of {draws} draws (mixed_rand the first, "
        "mixed_rand_r1 the second); the tables of in9 take all draws together": draws > 1,
        "the .JPEG files hold PNG data, as in the dataset; readers go by the content": (
            dataset.manifest.config.compose.encoding == "png"
        )
        and any(name.is_picture for name in dataset.variants),
    }
    return [note for note, holds in notes.items() if holds]


def with_results(dataset: Dataset, folders: Iterable[str]) -> tuple[Store, list[str]]:
    """Shows the models of other folders with those of a dataset, without copying their results.

    A model that shares its name with another is named with its lab, unless it is the dataset's: the
    LAB of `LAB=DIR`, else the creator of the card in the folder. If their predictions have the same
    bytes, through a link or in a copy, they are one model. Returned, too, is a line on each of the
    others. Raises UsageError if two models would have the same name.
    """
    own, lines = dataset.store, []
    lab_of: dict[str, str] = {}
    models = [(own, run) for run in stored_models(own)]
    digests = functools.cache(
        lambda store, name: [*map(store.digest, store.walk(f"results/{name}/predictions"))]
    )
    for entry in folders:
        # The name of a model's folder may have the sign, too, but stands behind a slash.
        lab, folder = re.findall(r"\A(?:([^/=]+)=)?(.+)", entry, re.DOTALL)[0]
        other, runs = open_results("--results", folder)
        lab_of[other.store.root] = escaped_line(lab or other.manifest.about.creator)
        mine, its = (
            {
                (file.path, file.sha256)
                for file in each.manifest.files
                if file.path.startswith(("parquet/", "webdataset/"))
            }
            for each in (dataset, other)
        )
        faults = {
            on_another(dataset, other): other.manifest.fingerprint != dataset.manifest.fingerprint,
            f"has other pictures: {len(mine - its)} of {len(mine)} files differ": mine != its,
            "lies in another kind of storage": other.store.is_remote != own.is_remote,
        }
        fault = next((fault for fault, is_there in faults.items() if is_there), "")
        new = [
            (other.store, run)
            for run in runs
            if not fault
            and not any(
                one.folder == run.folder
                and digests(store, one.folder) == digests(other.store, run.folder)
                for store, one in models
            )
        ]
        again = f", {len(runs) - len(new)} shown already: the same predictions count once"
        found = f"has {counted(len(runs), 'model')}{again * (len(new) < len(runs))}"
        lines.append(f"results: {folder} {fault or found}")
        models += new
    known = {(store.root, name) for store, run in models for name in (run.name, run.folder)}
    folders_with = Counter(name for _, name in known)
    named = [
        (store, run, replace(run, lab=lab_of.get(store.root, "")))
        if max(folders_with[run.name], folders_with[run.folder]) > 1
        else (store, run, run)
        for store, run in models
    ]
    taken = Counter(name for *_, one in named for name in {one.name, one.folder})
    for store, _, one in named:
        if store != own and max(taken[one.name], taken[one.folder]) > 1:
            raise UsageError(
                f"--results {store.root}: another model is called {one.name}, too, and no other "
                f"creator is on the card; name the lab: --results LAB={store.root}"
            )
    others = [
        (f"results/{one.folder}", store, run, one) for store, run, one in named if store != own
    ]
    return dataclasses.replace(
        own,
        elsewhere={path: store.path(f"results/{run.folder}") for path, store, run, _ in others},
        labs={path: one.lab for path, *_, one in others if one.lab},
    ), lines


def run_report(arguments: argparse.Namespace) -> int:
    """Runs `in9 report`; returns the exit code, which is that of `conclude`.

    Raises:
      UsageError: there is no finished dataset, it lacks a column that `--columns` names, or
        another flag is wrong.
      JobError: another process is writing the dataset's tables, or `--fail_if` could not be tested.
    """
    flags = flags_as(ReportFlags, arguments)
    store = writing_store("dataset", flags.dataset)
    publishing = check_publishing(store, flags.publish, flags.keep)
    store, lines = with_results(Dataset.open(store), flags.results or ())
    dataset = Dataset.open(store)
    known = headline_columns(dataset)
    columns = flags.columns or ()
    if unknown := [column for column in columns if column not in known]:
        raise UsageError(
            f"--columns {unknown[0]}: the dataset has {', '.join(known)}"
            f"{did_you_mean(unknown[0], known)}"
        )
    gate = gate_from_flags(flags_as(GateFlags, arguments), store, dataset.variants)
    with locked(store, TABLES_LOCK, wait=60) as tables:
        gate.choose_baseline(Dataset.open(tables))
        write_tables(Dataset.open(tables), columns)
    write_report(store, dataset.taxonomy, flags.pictures, pdf=True)
    summaries, stale = read_summaries(dataset)
    if summaries:
        lines += describe_summaries(dataset, summaries)
    lines += describe_stale(dataset, stale)
    print("\n".join([*notes_of(dataset.manifest), *lines, describe_report(store)]))
    if publishing:
        print(describe_published(publishing.target, publish(publishing)))
    return conclude(judge(gate, dataset), gate)


def run_verify(arguments: argparse.Namespace) -> int:
    """Runs `in9 verify`; returns the exit code, 1 if there are faults.

    Raises:
      UsageError: there is no finished dataset.
      JobError: the dataset is not finished, because a job is working on it.
    """
    store = reading_store(arguments.dataset)
    try:
        dataset = Dataset.open(store)
    except UsageError as error:
        if holder := _holder(arguments.dataset, store):
            raise JobError(
                f"{holder} is at work on {store.root}; verify it when the job is done"
            ) from error
        raise
    faults = 0
    for fault in verify(dataset):
        print(fault)
        faults += 1
    if faults:
        holder = _holder(arguments.dataset, store)
        worker = f"{holder} is" if holder else "a job has been"
        advice = (
            f"{worker} at work on it, so these may not be faults; verify it again when the job is "
            "done"
            if holder or read_manifest(store) != dataset.manifest
            else "remove the files concerned and run the command that made the dataset again"
        )
        print(f"in9 verify: {counted(faults, 'fault')}; {advice}", file=sys.stderr)
    else:
        print(f"{len(dataset.manifest.files)} files agree with {MANIFEST}")
    return 1 if faults else 0


def _holder(folder: str, store: Store) -> str | None:
    """Describes who works on the dataset, or on its versions in a folder; None if nobody does."""
    return current_holder(store, DATASET_LOCK) or current_holder(Store.at(folder), PUBLISH_LOCK)


def verify(dataset: Dataset) -> Iterator[str]:
    """Yields a line for each file of the manifest that is not intact, and for each foreign one.

    A file is intact if it exists with the manifest's size and SHA-256. The number of samples per
    file is not checked; it was counted before the manifest was written.
    """
    store, files = dataset.store, dataset.manifest.files
    faults = read_ahead(lambda file: _fault_of(store, file), files)
    yield from (fault for _, fault in faults if fault)
    known = {file.path for file in files}
    for folder in DATA_FOLDERS:
        yield from (f"{p}: not in the manifest" for p in store.walk(folder) if p not in known)


def _fault_of(store: Store, file: FileDigest) -> str | None:
    size = store.size(file.path)
    if size != file.bytes:
        found = "missing" if size is None else f"{size} bytes, the manifest says {file.bytes}"
        return f"{file.path}: {found}"
    try:
        is_same = store.digest(file.path) == file.sha256
    except OSError as error:
        return f"{file.path}: cannot be read: {error.strerror or error}"
    return None if is_same else f"{file.path}: the content has changed (sha256 differs)"
