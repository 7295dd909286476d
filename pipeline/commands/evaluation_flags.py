"""From flags to an evaluation: which models to run, and how, checked before anything starts."""

from __future__ import annotations

import argparse

import torch

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError
from pipeline.evaluate.plan import Evaluation
from pipeline.models import DEFAULT_MODEL, check_model, expand_models
from pipeline.models.leakage import check_entries
from pipeline.models.predict import PredictConfig
from pipeline.models.stored import chosen_folder
from pipeline.runners.dataflow_submission import inference_hints
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store

CPU_BATCH = 32
GPU_BATCH = 256


def evaluation_from_flags(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig
) -> Evaluation:
    """Checks the flags of commands that run models against each other and the dataset.

    Args:
      arguments: of `build_parser`, for `run`, `evaluate`, `attack` or `saliency`.
      store: of the dataset folder.
      config: of the dataset.

    Raises:
      UsageError: the first thing that is wrong.
    """
    models = expand_models((DEFAULT_MODEL,) if arguments.models is None else arguments.models)
    if not models:
        raise UsageError("--models names no model")
    weights = chosen_folder(arguments.weights)
    for model in models:
        check_model(model, weights)
    split = arguments.eval_split or ("val" if "val" in config.split else config.split[0])
    if split not in config.split:
        raise UsageError(f"--eval_split {split}: the dataset has {', '.join(config.split)}")
    evaluation = Evaluation(
        store=store,
        models=models,
        split=split,
        predict=_predict_config(arguments),
        progress=Progress.of(store),
        accept_new_weights="weights" in arguments.overwrite,
        weights=weights,
        groups=arguments.gpus or 1,
        hints=inference_hints(arguments),
        spread=arguments.gpus is not None,
        holdout=arguments.holdout,
        # What a model looks at is no test of it: saliency has no such flag.
        allow_overlap=getattr(arguments, "allow_overlap", True),
    )
    # Where the dataset is still to be made, models are checked when they are run.
    if arguments.command in ("evaluate", "attack"):
        check_entries(models, evaluation.test_on(Dataset.open(store)))
    return evaluation


def evaluation_of_stored(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig, why: str
) -> Evaluation:
    """The same for what works on the stored pixels alone; `why` it does.

    Raises:
      UsageError: the first thing that is wrong, or `--eval_input` asks for others.
    """
    evaluation = evaluation_from_flags(arguments, store, config)
    if evaluation.predict.eval_input != "stored":
        raise UsageError(f"{why}; leave --eval_input {evaluation.predict.eval_input} out")
    return evaluation


def _predict_config(arguments: argparse.Namespace) -> PredictConfig:
    device = arguments.device
    # With --gpu, models run elsewhere.
    has_gpu = bool(arguments.gpu) or torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UsageError(
            "--device cuda: there is no CUDA device that torch can use; --device auto would run "
            "on the CPU"
        )
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UsageError(f"--batch_size must be at least 1: got {arguments.batch_size}")
    if device == "auto":
        device = "cuda" if has_gpu else "cpu"
    default = GPU_BATCH if device == "cuda" else CPU_BATCH
    return PredictConfig(
        device=device,
        precision=arguments.precision,
        batch_size=arguments.batch_size or default,
        eval_input=arguments.eval_input,
    )
