"""Models in memory: two at most for each device of a process, of which one is on it."""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import threading
from collections.abc import Iterator, Mapping

import torch

from pipeline.errors import JobError, ModelError, UsageError
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.result_files import read_results
from pipeline.models.known import KnownModels
from pipeline.models.loaded import LoadedModel, check_head
from pipeline.models.pixel_cache import PixelCache
from pipeline.models.predict import Predictor, device_of
from pipeline.models.registry import load_model, source_of
from pipeline.runtime.counters import count
from pipeline.runtime.machine import give_back_freed_memory, usable_cores, usable_memory
from transforms.taxonomy import Taxonomy

_IN_MEMORY: Mapping[torch.device, threading.Semaphore] = collections.defaultdict(
    lambda: threading.BoundedSemaphore(2)
)
"""While one model works, the next one may be loaded."""
_LOADING = threading.Lock()
"""Two models that are made at the same time would draw from one generator of random numbers."""
_DEVICES: Mapping[torch.device, threading.Lock] = collections.defaultdict(threading.Lock)


@contextlib.contextmanager
def in_memory(
    entry: str, evaluation: Evaluation, taxonomy: Taxonomy, group: int = 0
) -> Iterator[LoadedModel]:
    """Loads a model that may be run, and whose caller lets go of it with the block.

    Args:
      entry: of `--models`.
      evaluation: how it is run, and beside which results.
      taxonomy: its head must fit.
      group: number of the group of shards that it is to run on.

    Raises:
      ModelError: anything is wrong with the model.
    """
    with _IN_MEMORY[_device(evaluation, group)]:
        # Of the one before, which its caller held to the end of its block.
        free_memory()
        torch.set_num_threads(evaluation.threads)
        try:
            with _LOADING:
                model = load_model(entry, evaluation.weights, taxonomy)
            check_head(model, taxonomy)
            if not evaluation.accept_new_weights:
                _check_weights(model, evaluation)
        except (UsageError, JobError) as error:
            raise ModelError(str(error)) from error
        known = KnownModels(evaluation.store, evaluation.weights, taxonomy)
        known.remember(entry, model.identity, source_of(entry).origin(entry, model))
        yield model


@contextlib.contextmanager
def on_device(model: LoadedModel, evaluation: Evaluation, group: int = 0) -> Iterator[Predictor]:
    """Brings a model onto the device that it is run on, once that is free.

    Args:
      model: in memory.
      evaluation: how it is run.
      group: number of the group of shards that it is run on.

    Raises:
      ModelError: there is no such device, or not enough memory.
    """
    with _DEVICES[_device(evaluation, group)]:
        try:
            predictor = Predictor(model, evaluation.predict, _pixel_cache(evaluation), group)
        except torch.cuda.OutOfMemoryError as error:
            raise ModelError("its weights do not fit into the memory of the device") from error
        count("models_on_device")
        try:
            yield predictor
        finally:
            # The next one finds the device free.
            model.module.to("cpu")
            del predictor
            free_memory()


def _device(evaluation: Evaluation, group: int) -> torch.device:
    return device_of(evaluation.predict.on_this_machine().device, group)


def _pixel_cache(evaluation: Evaluation) -> PixelCache:
    """This process's, for evaluations of more than one model."""
    if len(evaluation.models) == 1:
        return PixelCache(0)
    budget = evaluation.pixel_cache
    if budget is None:
        # A runner may have a process for each core, and each may come to have a cache.
        budget = usable_memory() // 4 // usable_cores()
    return _cache_of(budget, evaluation.predict.on_this_machine().device == "cuda")


_cache_of = functools.lru_cache(1)(PixelCache)


def forget_pictures() -> None:
    """Frees the memory of decoded pictures."""
    _cache_of.cache_clear()
    free_memory()


def _check_weights(model: LoadedModel, evaluation: Evaluation) -> None:
    for metadata in read_results(evaluation.store, "model", model.name):
        known = metadata["weights_sha256"]
        if known != model.weights_sha256:
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
