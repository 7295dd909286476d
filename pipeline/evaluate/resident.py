"""Models in memory: a process holds at most two for each device, one of them on the device."""

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
from pipeline.evaluate.results import ModelRun, read_results, result_file
from pipeline.models.identity import KnownModels
from pipeline.models.loader import PixelCache
from pipeline.models.predict import Predictor, device_of
from pipeline.models.registry import load_model, source_of
from pipeline.models.source import LoadedModel, check_head
from pipeline.runtime.machine import give_back_freed_memory, usable_cores, usable_memory
from pipeline.runtime.progress import count
from transforms.taxonomy import Taxonomy

_IN_MEMORY: Mapping[torch.device, threading.Semaphore] = collections.defaultdict(
    lambda: threading.BoundedSemaphore(2)
)
"""Admits two models for each device, so that the next model loads while one runs."""
_LOADING = threading.Lock()
"""Held while a model loads. Only one loads at a time, because models that are built concurrently
would draw their initial weights from the same random number generator."""
_DEVICES: Mapping[torch.device, threading.Lock] = collections.defaultdict(threading.Lock)
_LOADED = threading.Event()
"""Set once a model has been loaded whose memory `free_memory` has not freed yet."""


@contextlib.contextmanager
def in_memory(
    entry: str, evaluation: Evaluation, taxonomy: Taxonomy, block: int = 0
) -> Iterator[LoadedModel]:
    """Loads a model as soon as there is room for it.

    The caller must drop the model when the context ends.

    Args:
      entry: the model's entry of `--models`.
      evaluation: settings, and the dataset whose earlier results the model's weights must match.
      taxonomy: the classes that the model's head must fit.
      block: number of the block, which decides the device.

    Raises:
      ModelError: the model cannot be loaded, or must not be used.
    """
    with _IN_MEMORY[_device(evaluation, block)]:
        # Frees the previous model, whose caller held it until its context ended.
        if _LOADED.is_set():
            free_memory()
        torch.set_num_threads(evaluation.threads)
        try:
            _LOADED.set()
            with _LOADING:
                model = load_model(entry, evaluation.weights, taxonomy)
            check_head(model, taxonomy)
            if not evaluation.accept_new_weights:
                _check_weights(model, evaluation)
        except (UsageError, JobError) as error:
            raise ModelError(str(error)) from error
        known = KnownModels(evaluation.store, evaluation.weights, taxonomy)
        known.store_identity(entry, model.identity, source_of(entry).origin(entry, model))
        yield model


@contextlib.contextmanager
def on_device(model: LoadedModel, evaluation: Evaluation, block: int = 0) -> Iterator[Predictor]:
    """Moves a model to its device as soon as the device is free.

    Args:
      model: the model, from `in_memory`.
      evaluation: settings of the evaluation.
      block: number of the block, which decides the device.

    Raises:
      ModelError: there is no such device, or it has not enough memory.
    """
    with _DEVICES[_device(evaluation, block)]:
        try:
            predictor = Predictor(model, evaluation.predict, _pixel_cache(evaluation), block)
        except torch.cuda.OutOfMemoryError as error:
            raise ModelError("its weights do not fit into the memory of the device") from error
        count("models_on_device")
        try:
            yield predictor
        finally:
            on_gpu = predictor.device.type == "cuda"
            del predictor
            if on_gpu:
                # Makes room on the device for the next model.
                model.module.to("cpu")
                free_memory()


def _device(evaluation: Evaluation, block: int) -> torch.device:
    return device_of(evaluation.predict.on_this_machine().device, block)


def _pixel_cache(evaluation: Evaluation) -> PixelCache:
    """Returns the cache of this process; its size is 0 if there is no next model to use it."""
    if len(evaluation.models) == 1:
        return PixelCache(0)
    budget = evaluation.pixel_cache
    if budget is None:
        # A runner may start a process for each core, and each process has a cache of its own.
        budget = usable_memory() // 4 // usable_cores()
    return _cache_of(budget, evaluation.predict.on_this_machine().device == "cuda")


_cache_of = functools.lru_cache(1)(PixelCache)


def forget_all() -> None:
    """Frees the memory of decoded pictures, and of models that are no longer used."""
    _cache_of.cache_clear()
    if _LOADED.is_set():
        free_memory()


def _check_weights(model: LoadedModel, evaluation: Evaluation) -> None:
    for run in read_results(evaluation.store, "model", ModelRun, model.name):
        earlier = run.weights_sha256
        if earlier != model.weights_sha256:
            path = result_file(run.folder, "model")
            raise JobError(
                f"the weights of {model.name} have changed since {evaluation.store.path(path)} was "
                f"written (sha256 {earlier[:12]}, now {model.weights_sha256[:12]}); "
                "add --overwrite weights to evaluate the new ones"
            )


def free_memory() -> None:
    """Frees the memory of models that nothing refers to any more, on this machine and its GPUs.

    Models hold reference cycles, so this searches all objects of the process, which takes a third
    of a second.
    """
    _LOADED.clear()
    gc.collect()
    give_back_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
