"""One model in memory at a time: loading it for a stage, and letting go of it."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch

from pipeline.errors import JobError, ModelError, UsageError
from pipeline.evaluate.predict import Predictor
from pipeline.memory import give_back_freed_memory
from pipeline.models import LoadedModel, check_head, load_model
from pipeline.results.files import all_summaries
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.evaluate.stage import Evaluation


def load_resident(
    spec: str, evaluation: Evaluation, taxonomy: Taxonomy
) -> tuple[LoadedModel, Predictor]:
    """Loads a model onto the device.

    Args:
      spec: entry of `--models`.
      evaluation: how it is run, and beside which results.
      taxonomy: its head must fit.

    Raises:
      ModelError: anything is wrong with the model.
    """
    try:
        model = load_model(spec, evaluation.weights, taxonomy)
        check_head(model, taxonomy)
        if not evaluation.accept_new_weights:
            _check_weights(model, evaluation)
        return model, Predictor(model, evaluation.predict)
    except (UsageError, JobError) as error:
        raise ModelError(str(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError("its weights do not fit into the memory of the device") from error


def _check_weights(model: LoadedModel, evaluation: Evaluation) -> None:
    for summary in all_summaries(evaluation.store):
        known = summary.get("weights_sha256")
        if known and summary["model"] == model.name and known != model.weights_sha256:
            raise JobError(
                f"the weights of {model.name} have changed since its results were made "
                f"(sha256 {known[:12]}, now {model.weights_sha256[:12]}); "
                "add --accept_new_weights to evaluate the new ones"
            )


def free_memory() -> None:
    """Frees the memory of models that nothing refers to any more, so that the next one finds
    it."""
    gc.collect()
    give_back_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
