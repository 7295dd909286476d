"""Paths and fingerprints of a model's predictions on a shard.

This module does not import Beam, so that readers of predictions start fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout, selected_rows
from pipeline.evaluate.result_files import result_folder, result_shard
from transforms.variants import is_picture

ModelMetadata = Mapping[str, Any]
"""Description of a model and of how it is run, from
`pipeline.evaluate.evaluation.describe_model`."""


def evaluated_variants(dataset: Dataset, metadata: ModelMetadata | None = None) -> tuple[str, ...]:
    """Returns the variants that a model is evaluated on, replicates included: the entry `variants`
    of its metadata if there is one, else all variants of the dataset that are pictures."""
    if metadata is not None and "variants" in metadata:
        return tuple(metadata["variants"])
    return tuple(name for name in dataset.variants if is_picture(name))


def prediction_file(metadata: ModelMetadata, shard: int) -> str:
    """Returns the path of a model's predictions on a shard."""
    folder = result_folder(metadata["model"], metadata["evaluation"])
    return result_shard(folder, "predictions", metadata["evaluation"]["split"], shard)


def prediction_fingerprints(
    dataset: Dataset, metadata: ModelMetadata, shard: int
) -> dict[str, str]:
    """Returns by variant the value that the column `of` must have in valid predictions on a shard.

    Args:
      dataset: the dataset.
      metadata: the model, and how it is run.
      shard: number of the output shard.
    """
    settings = metadata["evaluation"]
    shared_inputs = [
        *(metadata[name] for name in ("model", "weights_sha256", "preprocessing")),
        {name: settings[name] for name in ("precision", "eval_input")},
        metadata["evaluate_version"],
        # A changed group moves images into or out of the holdout without changing any picture.
        *([sorted(tested_keys(dataset, metadata, shard))] if settings["holdout"] else []),
        *dataset.custom_taxonomy,
    ]
    return {
        variant: fingerprint(
            shared_inputs,
            variant,
            [file.sha256 for file in dataset.shard_files(settings["split"], shard, (variant,))],
        )
        for variant in evaluated_variants(dataset, metadata)
    }


def tested_keys(dataset: Dataset, metadata: ModelMetadata, shard: int) -> frozenset[str]:
    """Returns the keys of a shard's images that a model is tested on."""
    settings = metadata["evaluation"]
    rows = selected_rows(dataset, settings["split"], Holdout(settings["holdout"]), shard)
    return frozenset(row["key"] for row in rows)
