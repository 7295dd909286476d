"""Which predictions a model has of a shard: where they lie, and what they are of. Without Beam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout, selected_rows
from pipeline.evaluate.result_files import result_folder, result_shard
from transforms.variants import is_picture

ModelMetadata = Mapping[str, Any]
"""Which model, and how it is run: of `pipeline.evaluate.evaluation.describe_model`."""


def evaluated_variants(dataset: Dataset, metadata: ModelMetadata | None = None) -> tuple[str, ...]:
    """The variants that a model is evaluated on: those that it names, or else all, replicates
    among them."""
    if metadata is not None and "variants" in metadata:
        return tuple(metadata["variants"])
    return tuple(name for name in dataset.variants if is_picture(name))


def prediction_file(metadata: ModelMetadata, shard: int) -> str:
    """Where the predictions of a model on a shard lie."""
    folder = result_folder(metadata["model"], metadata["evaluation"])
    return result_shard(folder, "predictions", metadata["evaluation"]["split"], shard)


def predictions_of(dataset: Dataset, metadata: ModelMetadata, shard: int) -> dict[str, str]:
    """By variant, what identifies a model's predictions on a shard as it is: their column `of`.

    Args:
      dataset: that the shard is of.
      metadata: the model, and how it is run.
      shard: number of the output shard.
    """
    run = metadata["evaluation"]
    how = [
        *(metadata[name] for name in ("model", "weights_sha256", "preprocessing")),
        {name: run[name] for name in ("precision", "eval_input")},
        metadata["evaluate_version"],
        # Groups may change where pictures do not.
        *([sorted(tested_keys(dataset, metadata, shard))] if run["holdout"] else []),
        *dataset.custom_taxonomy,
    ]
    return {
        variant: fingerprint(
            how,
            variant,
            [file.sha256 for file in dataset.shard_files(run["split"], shard, (variant,))],
        )
        for variant in evaluated_variants(dataset, metadata)
    }


def tested_keys(dataset: Dataset, metadata: ModelMetadata, shard: int) -> frozenset[str]:
    """Keys of the images of a shard that a model is tested on."""
    run = metadata["evaluation"]
    rows = selected_rows(dataset, run["split"], Holdout(run["holdout"]), shard)
    return frozenset(row["key"] for row in rows)
