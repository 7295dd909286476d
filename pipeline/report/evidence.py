"""Gathers everything that the page is made from: the dataset and all its results."""

from __future__ import annotations

import dataclasses
import re

from pipeline.analyses import ANALYSES
from pipeline.dataset.folder import Dataset
from pipeline.display.evidence import Evidence, ModelResults
from pipeline.evaluate.failures import read_failures
from pipeline.evaluate.results import Answers, ModelRun, Named
from transforms.taxonomy import Taxonomy

_CHECKPOINT = re.compile(r"^([\w.:-]+)=.*/(?=[^/])(.*)$")
"""A checkpoint, ARCH=FOLDER/FILE; the groups are ARCH and FILE."""


def gather(dataset: Dataset, taxonomy: Taxonomy) -> Evidence:
    """Reads all results of a dataset; leaves out results that belong to an earlier state of it."""
    results: dict[str, dict[type, ModelRun]] = {}
    of_dataset: dict[type, list[object]] = {}
    errors: dict[str, dict[str, str]] = {}
    names: dict[str, Named] = {}
    stale: list[str] = []
    for analysis in ANALYSES:
        found = analysis.parts.find(dataset)
        for result in found.of_models:
            names.setdefault(result.folder, result)
            results.setdefault(result.folder, {})[type(result)] = result
        for content in found.of_dataset:
            of_dataset.setdefault(type(content), []).append(content)
        stale += found.stale
        has_result = {result.folder for result in found.of_models}
        if analysis.not_done:
            fingerprint = dataset.manifest.fingerprint
            for failure in read_failures(dataset.store, fingerprint, analysis.name)[0]:
                names.setdefault(failure.folder, failure)
                if failure.folder not in has_result:
                    errors.setdefault(failure.folder, {})[analysis.name] = failure.error
    models = [
        ModelResults(
            folder=folder,
            name=named.name,
            model=named.model,
            results=results.get(folder, {}),
            errors=errors.get(folder, {}),
        )
        for folder, named in names.items()
    ]
    return Evidence(
        dataset=dataset,
        taxonomy=taxonomy,
        models=tuple(sorted(_named(models), key=_order)),
        of_dataset={kind: tuple(contents) for kind, contents in of_dataset.items()},
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
    """Sorts models by accuracy on `original` under their headline's label rule, highest first;
    models without this accuracy come last."""
    answers = model.get(Answers)
    accuracy = answers.accuracy_on_original if answers else None
    return accuracy is None, -(accuracy or 0.0), model.folder
