"""One model in memory at a time: loading it for a stage, and letting go of it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from pipeline.errors import JobError, ModelError, UsageError
from pipeline.evaluate.failures import FailedModel
from pipeline.evaluate.plan import Evaluation
from pipeline.evaluate.results import read_results
from pipeline.models import LoadedModel, check_head, load_model
from pipeline.models.leakage import Test, refuse_overlap
from pipeline.models.predict import Predictor
from pipeline.runtime.counters import count, timed
from pipeline.runtime.memory import give_back_freed_memory
from transforms.taxonomy import Taxonomy

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


def each_model(
    evaluation: Evaluation,
    taxonomy: Taxonomy,
    orders: Iterable[int],
    work: Callable[[int, LoadedModel, Predictor | None], Iterator[T]],
    *,
    stage: str,
    on_device: bool,
    test: Test | None = None,
) -> Iterator[T | FailedModel]:
    """Works with one model after another; one that fails does not keep the next from it.

    Args:
      evaluation: models, and how they are run.
      taxonomy: their heads must fit.
      orders: places of the models that are worked with, in their order.
      work: takes a model's place among the models, the model, and the same on its device; what
        it yields is passed on.
      stage: whose time it is.
      on_device: whether models are brought onto their device, which is then counted.
      test: what models are tested on, if those are refused that were trained on it.

    Yields:
      The work's results, and a FailedModel for each model that raised a ModelError.
    """
    torch.set_num_threads(evaluation.threads)
    for order in orders:
        name = spec = evaluation.models[order]
        try:
            with timed(stage):
                if test is not None:
                    refuse_overlap(spec, test)
                model = load_checked(spec, evaluation, taxonomy)
                predictor = put_on_device(model, evaluation) if on_device else None
            count("models_on_device", int(on_device))
            name = model.name
            yield from work(order, model, predictor)
        except ModelError as error:
            _LOG.warning("%s failed", name, exc_info=True)
            yield FailedModel(order, spec, name, " ".join(str(error).split()))
        model = predictor = None  # type: ignore[assignment]
        free_memory()


def load_checked(spec: str, evaluation: Evaluation, taxonomy: Taxonomy) -> LoadedModel:
    """Loads a model that may be run.

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
        return model
    except (UsageError, JobError) as error:
        raise ModelError(str(error)) from error


def put_on_device(model: LoadedModel, evaluation: Evaluation) -> Predictor:
    """Brings a model onto the device that it is run on.

    Raises:
      ModelError: there is not enough memory.
    """
    try:
        return Predictor(model, evaluation.predict)
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError("its weights do not fit into the memory of the device") from error


def _check_weights(model: LoadedModel, evaluation: Evaluation) -> None:
    for summary in read_results(evaluation.store, "summary"):
        known = summary.get("weights_sha256")
        if known and summary["model"] == model.name and known != model.weights_sha256:
            raise JobError(
                f"the weights of {model.name} have changed since its results were made "
                f"(sha256 {known[:12]}, now {model.weights_sha256[:12]}); "
                "add --overwrite weights to evaluate the new ones"
            )


def free_memory() -> None:
    """Frees the memory of models that nothing refers to any more, so that the next one finds
    it."""
    gc.collect()
    give_back_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
