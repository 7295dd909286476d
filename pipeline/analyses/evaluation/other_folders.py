"""The models of other folders, which `in9 report --results` shows with those of a dataset."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterable

from msgspec.structs import replace

from pipeline.analyses.evaluation.baseline import on_another, open_results, stored_models
from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError, counted, escaped_line
from pipeline.storage.store import Store


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
