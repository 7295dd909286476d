"""What was run, why images were rejected, and the files beside the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import MANIFEST
from pipeline.display.evidence import Evidence
from pipeline.evaluate.results import Answers
from pipeline.storage.store import Store


@dataclasses.dataclass(frozen=True)
class Link:
    """A file or folder beside the page.

    Attributes:
      href: its path relative to the page, quoted.
      name: the name that the page shows.
    """

    href: str
    name: str


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What was run.

    Attributes:
      config: the dataset's flags, given or default.
      rejections: (reason, split, number of images), most frequent first.
      models: (name, result) of each model that the page is about; the result holds what identifies
        the model.
      links: (kind, files) for each kind of files that exist.
    """

    config: dict[str, object]
    rejections: tuple[tuple[str, str, int], ...]
    models: tuple[tuple[str, Answers], ...]
    links: tuple[tuple[str, tuple[Link, ...]], ...]


def make_provenance(evidence: Evidence, figures: Sequence[str]) -> Provenance:
    """Collects the panel's content.

    Args:
      evidence: what the page is made from.
      figures: paths of the figures that will lie beside the page, SVG and PDF.
    """
    dataset = evidence.dataset
    rejections = [
        (reason, split, count)
        for split, reasons in dataset.manifest.rejections.items()
        for reason, count in reasons.items()
    ]
    groups = (
        ("Tables (CSV)", _results(dataset.store, "results", ".csv")),
        ("Tables (LaTeX)", _results(dataset.store, "results/latex", ".tex")),
        ("Figures (SVG)", _of_kind(figures, ".svg")),
        ("Figures (PDF)", _of_kind(figures, ".pdf")),
        ("Every prediction (Parquet)", _predictions(evidence)),
        ("The dataset (Parquet)", _variants(dataset)),
        ("About the dataset", _metadata(dataset)),
    )
    return Provenance(
        config=dataset.manifest.config.flags(),
        rejections=tuple(sorted(rejections, key=lambda row: (-row[2], row[0], row[1]))),
        models=tuple((model.name, answers) for model, answers in evidence.answered),
        links=tuple((kind, links) for kind, group in groups if (links := tuple(group))),
    )


def _link(path: str, name: str | None = None) -> Link:
    return Link(quote(path, safe="/+=,@~"), name or path.rpartition("/")[2])


def _of_kind(paths: Sequence[str], suffix: str) -> Iterator[Link]:
    return (_link(path) for path in sorted(paths) if path.endswith(suffix))


def _results(store: Store, folder: str, suffix: str) -> Iterator[Link]:
    for path in store.walk(folder):
        if path.count("/") == folder.count("/") + 1 and path.endswith(suffix):
            yield _link(path)


def _predictions(evidence: Evidence) -> Iterator[Link]:
    for model, _ in evidence.answered:
        folder = f"results/{model.folder}/predictions"
        if evidence.dataset.store.has_folder(folder):
            yield _link(f"{folder}/", model.name)


def _variants(dataset: Dataset) -> Iterator[Link]:
    for variant in dataset.variants:
        if dataset.store.has_folder(f"parquet/{variant}"):
            yield _link(f"parquet/{variant}/", variant)


def _metadata(dataset: Dataset) -> Iterator[Link]:
    for path in (MANIFEST, "README.md", "croissant.json", "classes.txt"):
        if dataset.store.exists(path):
            yield _link(path)
    if dataset.store.has_folder("index"):
        yield _link("index/", "index: a row for every source image")
