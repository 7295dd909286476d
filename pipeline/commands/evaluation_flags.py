"""Turns flags into an evaluation, which models to run and how, and into the work that each analysis
plans for them, checked before anything starts."""

from __future__ import annotations

import argparse
import dataclasses
import functools

from pipeline.analyses import ANALYSES
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.work import Work
from pipeline.models.expand import DEFAULT_MODEL, expand_models
from pipeline.models.known import KnownModels
from pipeline.models.predict_config import PredictConfig
from pipeline.models.stored_index import chosen_folder
from pipeline.runners.dataflow_gpu import accelerator_hints
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy


def evaluation_from_flags(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig, taxonomy: Taxonomy
) -> Evaluation:
    """Makes an evaluation from flags, which are checked against each other and the dataset.

    Args:
      arguments: the parsed arguments of a command that runs models.
      store: the dataset folder.
      config: the dataset's configuration.
      taxonomy: the dataset's taxonomy.

    Raises:
      UsageError: a flag is wrong.
    """
    weights = chosen_folder(arguments.weights)
    recall = functools.cache(KnownModels(store, weights, taxonomy).recall)
    entries = (DEFAULT_MODEL,) if arguments.models is None else arguments.models
    models = expand_models(entries, recall)
    if not models:
        raise UsageError("--models names no model")
    for model in models:
        # A model that was loaded before needs no check, so its library need not be imported.
        if recall(model) is None:
            from pipeline.models.registry import check_fit, check_model

            check_model(model, weights)
            check_fit(model, taxonomy, weights)
    split = arguments.eval_split or ("val" if "val" in config.split else config.split[0])
    if split not in config.split:
        raise UsageError(f"--eval_split {split}: the dataset has {', '.join(config.split)}")
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UsageError(f"--batch_size must be at least 1: got {arguments.batch_size}")
    # Only some commands have the flag.
    megabytes: int | None = getattr(arguments, "pixel_cache", None)
    if megabytes is not None and megabytes < 0:
        raise UsageError(f"--pixel_cache must be at least 0: got {megabytes}")
    settings = {field.name for field in dataclasses.fields(PredictConfig)}
    evaluation = Evaluation(
        store=store,
        models=models,
        split=split,
        predict=PredictConfig(**{name: getattr(arguments, name) for name in settings}),
        progress=Progress.for_store(store),
        accept_new_weights="weights" in arguments.overwrite,
        weights=weights,
        groups=arguments.gpus,
        hints=accelerator_hints(arguments.gpu),
        holdout=arguments.holdout,
        pixel_cache=None if megabytes is None else megabytes << 20,
        # A command without the flag measures no test score, so overlap is allowed.
        allow_overlap=getattr(arguments, "allow_overlap", True),
    )
    # For `run`, the dataset may not exist yet, so the models are checked when they are run.
    if hasattr(arguments, "allow_overlap") and arguments.command != "run":
        dataset = Dataset.open(store)
        for model in models:
            evaluation.refuse_overlap(dataset, model)
    return evaluation


def works_from_flags(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig, taxonomy: Taxonomy
) -> dict[str, Work]:
    """Makes the works from flags, which are checked against each other and the dataset.

    Args:
      arguments: the parsed arguments of a command of the main job.
      store: the dataset folder.
      config: the dataset's configuration.
      taxonomy: the dataset's taxonomy.

    Returns:
      The works by name of their analysis, in order; none for `generate`.

    Raises:
      UsageError: a flag is wrong.
    """
    if arguments.command == "generate":
        return {}
    evaluation = evaluation_from_flags(arguments, store, config, taxonomy)
    plans = (
        (one.name, one.parts.plan(arguments, evaluation, config, taxonomy)) for one in ANALYSES
    )
    return {name: work for name, work in plans if work is not None}
