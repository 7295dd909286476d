"""Gathers everything that the page is made from: the dataset and all its results."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from pipeline.analyses.attack.attack_results import read_attacks
from pipeline.analyses.matrix.matrix_results import read_matrices
from pipeline.analyses.saliency.saliency_results import read_saliency
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.failures import read_failures
from pipeline.evaluate.result_files import (
    display_name,
    read_result,
    result_folder,
)
from pipeline.evaluate.summaries import read_summaries
from pipeline.report.trend_tables import TREND
from transforms.scoring import PAPER_RULE
from transforms.taxonomy import Taxonomy

_CHECKPOINT = re.compile(r"^([\w.:-]+)=.*/(?=[^/])(.*)$")
"""A checkpoint, ARCH=FOLDER/FILE; the groups are ARCH and FILE."""


@dataclasses.dataclass(frozen=True)
class ModelResults:
    """The results of one model, run with one set of settings, on the current dataset.

    Attributes:
      folder: name of its folder below `results/`.
      name: name of the model, with the settings that differ from the defaults.
      model: the model as `--models` names it.
      summary: summary of its evaluation; None if it was not evaluated.
      attack: result of `in9 attack`; None if the model was not attacked.
      saliency: result of `in9 saliency`; None if saliency was not measured.
      errors: why it failed, by stage, for stages in which it has no results.
    """

    folder: str
    name: str
    model: str
    summary: dict[str, Any] | None
    attack: dict[str, Any] | None = None
    saliency: dict[str, Any] | None = None
    errors: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def rows(self, part: str, **wanted: object) -> list[dict[str, Any]]:
        """Returns the rows of a part of the summary in which these columns have the wanted
        values."""
        rows: list[dict[str, Any]] = (self.summary or {}).get(part, [])
        return [row for row in rows if all(row[name] == value for name, value in wanted.items())]

    @property
    def trained(self) -> dict[str, Any]:
        """Training metadata of the model's checkpoint; empty if it has none."""
        for part in (self.summary, self.attack, self.saliency):
            if part and part.get("trained"):
                metadata: dict[str, Any] = part["trained"]
                return metadata
        return {}

    @property
    def missing(self) -> tuple[str, ...]:
        """Variants for whose current pictures the model has no predictions."""
        return tuple((self.summary or {}).get("missing", ()))

    @property
    def overlap(self) -> int:
        """Number of test images that were also training images, as far as its checkpoint names
        them."""
        return (self.summary or {}).get("overlap") or 0

    def row(self, part: str, **wanted: object) -> dict[str, Any] | None:
        """Returns the first row that `rows` would return; None if `rows` would be empty."""
        return next(iter(self.rows(part, **wanted)), None)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Everything that the page is made from.

    Attributes:
      dataset: the dataset.
      taxonomy: the dataset's classes.
      models: sorted by accuracy on `original` under the paper's label rule, highest first; models
        without this accuracy come last.
      stale: names of models whose predictions all belong to an earlier state of the dataset.
      trend: content of results/trend.json; None if the file is missing or belongs to another state
        of the dataset.
      matrices: results of `in9 matrix`, one for each network and its settings.
    """

    dataset: Dataset
    taxonomy: Taxonomy
    models: tuple[ModelResults, ...]
    stale: tuple[str, ...]
    trend: dict[str, Any] | None
    matrices: tuple[dict[str, Any], ...] = ()

    @property
    def evaluated(self) -> tuple[ModelResults, ...]:
        """The models that have accuracies."""
        return tuple(model for model in self.models if model.summary)


def gather(dataset: Dataset, taxonomy: Taxonomy) -> Evidence:
    """Reads all results of a dataset; leaves out results that belong to an earlier state of it."""
    store, fingerprint = dataset.store, dataset.manifest.fingerprint
    summaries, stale = read_summaries(dataset)
    of_folder: dict[str, dict[str, dict[str, Any]]] = {}
    for summary in summaries:
        folder = result_folder(summary["model"], summary["evaluation"])
        of_folder.setdefault(folder, {})["evaluate"] = summary
    attacks, saliency = read_attacks(dataset)[0], read_saliency(dataset)
    for name, contents in (("attack", attacks), ("saliency", saliency)):
        for content in contents:
            folder = result_folder(content["model"], content["evaluation"])
            of_folder.setdefault(folder, {})[name] = content
    failed: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in ("evaluate", "attack", "saliency"):
        for failure in read_failures(store, fingerprint, stage)[0]:
            folder = result_folder(failure["model"], failure["evaluation"])
            failed.setdefault(folder, {})[stage] = failure
    models = _named(
        [
            _model(folder, of_folder.get(folder, {}), failed.get(folder, {}))
            for folder in of_folder.keys() | failed.keys()
        ]
    )
    trend = read_result(store, TREND)
    if trend and trend["dataset"] != fingerprint:
        trend = None
    return Evidence(
        dataset=dataset,
        taxonomy=taxonomy,
        models=tuple(sorted(models, key=_order)),
        stale=tuple(stale),
        trend=trend,
        matrices=tuple(read_matrices(dataset)),
    )


def _model(
    folder: str, results: dict[str, dict[str, Any]], failed: dict[str, dict[str, Any]]
) -> ModelResults:
    first = next(iter([*results.values(), *failed.values()]))
    return ModelResults(
        folder=folder,
        name=display_name(first),
        model=first["model"],
        summary=results.get("evaluate"),
        attack=results.get("attack"),
        saliency=results.get("saliency"),
        errors={stage: one["error"] for stage, one in failed.items() if stage not in results},
    )


def _named(models: list[ModelResults]) -> list[ModelResults]:
    """Drops the folders of checkpoints from names, unless two names would then be the same."""
    short = [_CHECKPOINT.sub(r"\1=\2", model.name) for model in models]
    return [
        dataclasses.replace(model, name=name) if short.count(name) == 1 else model
        for model, name in zip(models, short, strict=True)
    ]


def _order(model: ModelResults) -> tuple[bool, float, str]:
    row = model.row("accuracy", label_rule=PAPER_RULE, variant="original")
    accuracy = row["accuracy"] if row else None
    return accuracy is None, -(accuracy or 0.0), model.folder
