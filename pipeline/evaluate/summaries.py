"""Summaries: what the predictions of each model say of the dataset as it is.

They are made when they are asked for, and stored nowhere: of a model that was run on an earlier
state of the dataset, they hold what is still true.
"""

from __future__ import annotations

from typing import Any

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.analysis import summary_parts
from pipeline.evaluate.answers import Images, read_answers
from pipeline.evaluate.logits import PROBED
from pipeline.evaluate.results import read_results, tested_part


def read_summaries(dataset: Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    """Summaries of all models, in order of their folder.

    Returns:
      (what model.json says of each, with the dataset's fingerprint, the rows of each part of
      `summary_parts`, and `missing`: the variants that it has no predictions of; names of models
      none of whose predictions are of the dataset as it is).
    """
    images: dict[tuple[str, float], Images] = {}
    summaries, stale = [], []
    for about in read_results(dataset.store, "model"):
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
