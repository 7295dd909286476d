"""Paths and fingerprints of a model's predictions on a shard.

This module does not import Beam, so that readers of predictions start fast.
"""

from __future__ import annotations

from msgspec import UNSET

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout, selected_rows
from pipeline.evaluate.result_files import result_shard
from pipeline.evaluate.results import ModelRun
from transforms.variants import is_picture


def evaluated_variants(dataset: Dataset, run: ModelRun | None = None) -> tuple[str, ...]:
    """Returns the variants that a model is evaluated on, replicates included: those that its run
    names, else all variants of the dataset that are pictures."""
    if run is not None and run.variants is not UNSET:
        return run.variants
    return tuple(name for name in dataset.variants if is_picture(name))


def prediction_file(run: ModelRun, shard: int) -> str:
    """Returns the path of a model's predictions on a shard."""
    return result_shard(run.folder, "predictions", run.evaluation.split, shard)


def prediction_fingerprints(dataset: Dataset, run: ModelRun, shard: int) -> dict[str, str]:
    """Returns by variant the value that the column `of` must have in valid predictions on a shard.

    Args:
      dataset: the dataset.
      run: the model, and how it is run.
      shard: number of the output shard.
    """
    settings = run.evaluation
    shared_inputs = [
        *run.identity,
        {"precision": settings.precision, "eval_input": settings.eval_input},
        run.evaluate_version,
        # A changed group moves images into or out of the holdout without changing any picture.
        *([sorted(tested_keys(dataset, run, shard))] if settings.holdout else []),
        *dataset.custom_taxonomy,
    ]
    return {
        variant: fingerprint(
            shared_inputs,
            variant,
            [file.sha256 for file in dataset.shard_files(settings.split, shard, (variant,))],
        )
        for variant in evaluated_variants(dataset, run)
    }


def tested_keys(dataset: Dataset, run: ModelRun, shard: int) -> frozenset[str]:
    """Returns the keys of a shard's images that a model is tested on."""
    settings = run.evaluation
    rows = selected_rows(dataset, settings.split, Holdout(settings.holdout), shard)
    return frozenset(row["key"] for row in rows)
