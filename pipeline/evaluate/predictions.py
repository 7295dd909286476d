"""Which predictions a model has of a shard: where they lie, and what they are of. Without Beam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout, selected_rows
from pipeline.evaluate.results import result_folder, result_shard
from transforms.variants import is_picture

About = Mapping[str, Any]
"""Which model, and how it is run: of `pipeline.evaluate.plan.describe_model`."""


def evaluated_variants(dataset: Dataset, about: About | None = None) -> tuple[str, ...]:
    """The variants that a model is evaluated on: those that it names, or else all, replicates
    among them."""
    if about is not None and "variants" in about:
        return tuple(about["variants"])
    return tuple(name for name in dataset.variants if is_picture(name))


def prediction_file(about: About, shard: int) -> str:
    """Where the predictions of a model on a shard lie."""
    folder = result_folder(about["model"], about["evaluation"])
    return result_shard(folder, "predictions", about["evaluation"]["split"], shard)


def predictions_of(dataset: Dataset, about: About, shard: int) -> dict[str, str]:
    """By variant, what identifies a model's predictions on a shard as it is: their column `of`.

    Args:
      dataset: that the shard is of.
      about: the model, and how it is run.
      shard: number of the output shard.
    """
    run = about["evaluation"]
    how = [
        *(about[name] for name in ("model", "weights_sha256", "preprocessing")),
        {name: run[name] for name in ("precision", "eval_input")},
        about["evaluate_version"],
        # Groups may change where pictures do not.
        *([sorted(tested_keys(dataset, about, shard))] if run["holdout"] else []),
        *dataset.own_taxonomy,
    ]
    return {
        variant: fingerprint(
            how,
            variant,
            [file.sha256 for file in dataset.shard_files(run["split"], shard, (variant,))],
        )
        for variant in evaluated_variants(dataset, about)
    }


def tested_keys(dataset: Dataset, about: About, shard: int) -> frozenset[str]:
    """Keys of the images of a shard that a model is tested on."""
    run = about["evaluation"]
    rows = selected_rows(dataset, run["split"], Holdout(run["holdout"]), shard)
    return frozenset(row["key"] for row in rows)
