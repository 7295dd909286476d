"""Summaries: what the predictions of each model say of the dataset as it is; those of rows of the
matrix say it there (`pipeline.analyses.matrix.results`).

They are made when they are asked for, and stored nowhere: of a model that was run on an earlier
state of the dataset, they hold what is still true.
"""

from __future__ import annotations

from typing import Any

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.analysis import summary_parts
from pipeline.evaluate.answers import Images, read_answers
from pipeline.evaluate.logits import PROBED
from pipeline.evaluate.results import read_results, tested_part


def read_summaries(dataset: Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    """Summaries of all models that are no rows of a matrix, in order of their folder.

    Those that were made last are kept: tables, page and closing words of one job ask for the same.

    Returns:
      (what model.json says of each, with the dataset's fingerprint, the rows of each part of
      `summary_parts`, and `missing`: the variants that it has no predictions of; names of models
      none of whose predictions are of the dataset as it is).
    """
    state = _state(dataset)
    if state not in _made_last:
        _made_last.clear()
        _made_last[state] = _make(dataset)
    summaries, stale = _made_last[state]
    return list(summaries), list(stale)


_made_last: dict[str, tuple[list[dict[str, Any]], list[str]]] = {}


def _state(dataset: Dataset) -> str:
    """What changes when summaries do: the dataset, and the files that they are made of."""
    store = dataset.store
    files = [
        [file.path, file.size, file.identity]
        for file in store.files.walk(store.path("results"))
        if file.path.endswith("/model.json") or "/predictions/" in file.path
    ]
    return fingerprint(store.root, dataset.manifest.fingerprint, sorted(files))


def _make(dataset: Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    images: dict[tuple[str, float], Images] = {}
    summaries, stale = [], []
    for about in read_results(dataset.store, "model"):
        if "matrix" in about:
            continue
        part = tested_part(about)
        if part[0] not in dataset.manifest.shards:
            stale.append(about["model"])
            continue
        if part not in images:
            images[part] = Images.read(dataset, *part)
        answers = read_answers(dataset, images[part], about)
        if all(not of_rule.predictions for of_rule in answers.by_rule.values()):
            stale.append(about["model"])
            continue
        summaries.append(
            {
                **about,
                "dataset": dataset.manifest.fingerprint,
                "evaluation": {**about["evaluation"], "device": "+".join(answers.devices)},
                "missing": answers.missing,
                **summary_parts(answers.by_rule, images[part], dataset.taxonomy),
                "power": [] if PROBED in answers.missing else about["power"],
            }
        )
    return summaries, stale
