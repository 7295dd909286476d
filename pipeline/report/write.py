"""Writes the tables, the page and its figures into the dataset's folder, if anything has changed.

A note in the work folder holds a fingerprint of everything that the page is made from (files by
size and time, and the code that renders it), and the state of the page's own files when they were
written.
"""

import dataclasses
import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from pipeline.analyses import ANALYSES
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import MANIFEST
from pipeline.errors import shown_bytes
from pipeline.evaluate.evidence import Evidence, ModelResults
from pipeline.evaluate.results import (
    Failure,
    ModelRun,
    Named,
    failures_without_results,
    read_failures,
)
from pipeline.evaluate.summary import Summary
from pipeline.runtime.lock import TABLES_LOCK, locked
from pipeline.runtime.own_code import digest_of_code
from pipeline.storage.state_files import RelativePath, read_json
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.hashing import fingerprint
from transforms.taxonomy import Taxonomy

_NOTE = f"{WORK_FOLDER}/report.json"
_LIBRARIES = ("jinja2", "matplotlib", "pillow")
CODE = (".py", ".html", ".css", ".js", ".csv")
"""Suffixes of the files that may decide what the page shows."""


@dataclasses.dataclass(frozen=True)
class _Note:
    """Content of the note: the fingerprint, and the page's files as `_states` returns them."""

    inputs: str
    outputs: list[tuple[RelativePath, int, str]]


@functools.cache
def _code() -> str:
    """Returns a fingerprint of this project's code and of all libraries that render the page."""
    return fingerprint(digest_of_code(*CODE), [version(name) for name in _LIBRARIES])


def _states(store: Store, paths: Iterable[str]) -> list[tuple[str, int, str]]:
    """Returns path, size and identity of each file; a missing file has size -1."""
    found = ((path, store.files.info(store.path(path))) for path in paths)
    return [(path, info.size, info.identity) if info else (path, -1, "") for path, info in found]


_CHECKPOINT = re.compile(r"^([\w.:-]+)=.*/(?=[^/])(.*)$")
"""A checkpoint, ARCH=FOLDER/FILE; the groups are ARCH and FILE."""


def gather(dataset: Dataset, taxonomy: Taxonomy) -> Evidence:
    """Reads all results of a dataset; leaves out results that belong to an earlier state of it."""
    by_folder = defaultdict[str, list[Named]](list)
    of_dataset: list[object] = []
    stale: list[str] = []
    for analysis in ANALYSES:
        found = analysis.parts.find(dataset)
        of_dataset += found.of_dataset
        stale += found.stale
        failed, _ = read_failures(dataset.store, dataset.manifest.fingerprint, analysis.name)
        known = failures_without_results(failed, found.of_models) if analysis.not_done else []
        for one in (*found.of_models, *known):
            by_folder[one.folder].append(one)
    models = [
        ModelResults(
            folder=folder,
            name=first.name,
            model=first.model,
            results=[one for one in of_model if isinstance(one, ModelRun)],
            errors={one.stage: one.error for one in of_model if isinstance(one, Failure)},
        )
        for folder, of_model in by_folder.items()
        for first in of_model[:1]
    ]
    return Evidence(
        dataset=dataset,
        taxonomy=taxonomy,
        models=tuple(sorted(_named(models), key=_order)),
        of_dataset=of_dataset,
        stale=tuple(stale),
    )


def _named(models: list[ModelResults]) -> list[ModelResults]:
    """Drops the folders of checkpoints from names, unless two names would then be the same."""
    short = [_CHECKPOINT.sub(r"\1=\2", model.name) for model in models]
    return [
        dataclasses.replace(model, name=name) if short.count(name) == 1 else model
        for model, name in zip(models, short, strict=True)
    ]


def _order(model: ModelResults) -> tuple[bool, float, str]:
    """Sorts models by accuracy on `original` under their headline's label rule, highest first.

    Models without this accuracy come last.
    """
    summary = model.get(Summary)
    original = summary.estimate("original") if summary else None
    return original is None, -original[0] if original else 0.0, model.folder


REPORT = "report.html"
FOLDER = "results/figures"
"""Folder of the report's figures."""


def is_report_figure(path: str) -> bool:
    """Returns whether a path is one that this or an earlier report gives to a figure."""
    stem, dot, kind = path.removeprefix(f"{FOLDER}/").rpartition(".")
    if not path.startswith(f"{FOLDER}/") or f"{dot}{kind}" not in (".svg", ".pdf"):
        return False
    names = [name for analysis in ANALYSES for name in analysis.parts.figures]
    return any(stem.startswith(name) if name.endswith("-") else stem == name for name in names)


def write_report(
    store: Store, taxonomy: Taxonomy, pictures: str = "sample", *, pdf: bool = False
) -> bool:
    """Writes the page and its figures if they have changed; returns whether any file has changed.

    Figures that are no longer drawn are removed.

    Args:
      pictures: `sample`, or `none` to leave all pictures out.
      pdf: whether to write figures as PDF files, too; they are also written if the folder already
        has PDF figures.
    """
    with locked(store, TABLES_LOCK, wait=60) as store:
        files = list(store.walk("results"))
        pdf = pdf or any(path.endswith(".pdf") and is_report_figure(path) for path in files)
        results = [path for path in files if not is_report_figure(path)]
        states = _states(store, [MANIFEST, *sorted(results)])
        inputs = fingerprint(states, pictures, pdf, _code())
        note = read_json(store, _NOTE, _Note)
        if note and note == _Note(inputs, _states(store, [path for path, *_ in note.outputs])):
            return False
        page, figures = _render(Dataset.open(store), taxonomy, pictures, pdf=pdf)
        changed = [store.update(path, data) for path, data in figures.items()]
        obsolete = [path for path in files if path not in figures and is_report_figure(path)]
        store.delete_all(obsolete)
        changed.append(store.update(REPORT, shown_bytes(page)))
        note = _Note(inputs, _states(store, [REPORT, *sorted(figures)]))
        store.update(_NOTE, shown_bytes(json.dumps(dataclasses.asdict(note))))
    return bool(obsolete) or any(changed)


def describe_report(store: Store) -> str:
    """Says where the page is, and where figures for a paper are, or what makes them."""
    pdfs = f"{store.path(FOLDER)}/*.pdf"
    if not any(path.endswith(".pdf") for path in store.walk(FOLDER)):
        pdfs = f"in9 report --dataset {store.root} makes {pdfs}"
    return f"report: {store.path(REPORT)}\nfigures for a paper: {pdfs}"


def _render(
    dataset: Dataset, taxonomy: Taxonomy, pictures: str, *, pdf: bool
) -> tuple[str, dict[str, bytes]]:
    """Renders the page; returns its text, and the content of its figure files by path."""
    # Imported late: matplotlib and the templates are slow to import, and few commands find
    # anything new to show.
    from pipeline.report.page import render

    evidence = gather(dataset, taxonomy)
    plots = [plot for analysis in ANALYSES for plot in analysis.parts.plots(evidence)]
    figures = {f"{FOLDER}/{plot.file}": plot.drawn.svg for plot in plots}
    if pdf:
        names = ((plot, plot.file.removesuffix(".svg")) for plot in plots)
        figures |= {f"{FOLDER}/{name}.pdf": plot.drawn.pdf() for plot, name in names}
    return render(evidence, plots, tuple(figures), pictures != "none"), figures


def write_results(
    dataset: str, store: Store, taxonomy: Taxonomy, pictures: str, *, has_run_models: bool
) -> str:
    """Writes the tables and the page at the end of a job; passes the dataset's fingerprint on.

    A job that has run no models writes the page only if there are results of models or an old page,
    which may now belong to an earlier state of the dataset.
    """
    with locked(store, TABLES_LOCK, wait=60) as fenced:
        write_tables(Dataset.open(fenced))
    if has_run_models or any(store.walk("results")) or store.exists(REPORT):
        write_report(store, taxonomy, pictures)
    return dataset


def write_tables(dataset: Dataset, columns: Sequence[str] = ()) -> None:
    """Rebuilds all tables from the stored results. The caller must hold the lock of the tables.

    `columns` are those of LaTeX tables, empty for the default.
    """
    for analysis in ANALYSES:
        analysis.parts.write(dataset, columns)
