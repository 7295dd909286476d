"""Models in memory: a process holds at most two for each device, one of them on the device."""

import collections
import contextlib
import functools
import gc
import threading
from collections.abc import Iterator, Mapping
from typing import cast

import torch

from pipeline.errors import JobError, ModelError, UsageError
from pipeline.evaluate.planned import Evaluation
from pipeline.evaluate.predict_shards import RowsScorer
from pipeline.evaluate.results import ModelRun, read_results, result_file
from pipeline.models.checkpoint import KnownModels, encoder_of
from pipeline.models.heads import with_head
from pipeline.models.loader import PixelCache
from pipeline.models.predict import Predictor, device_of, is_out_of_memory
from pipeline.models.registry import load_model, source_of
from pipeline.models.source import LoadedModel, check_head
from pipeline.runtime.machine import (
    give_back_freed_memory,
    similar_processes,
    usable_memory,
)
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
_SHARED = threading.Event()
"""Set once a model that others may hold was used, and `free_memory` has not been called since."""


@contextlib.contextmanager
def in_memory(
    entry: str,
    evaluation: Evaluation,
    taxonomy: Taxonomy,
    block: int = 0,
    *,
    encodes: bool = False,
) -> Iterator[LoadedModel]:
    """Loads a model as soon as there is room for it; drops it when the context ends.

    The block's number decides the device. A frozen encoder gets its head, unless it `encodes`.
    Raises ModelError if the model cannot be loaded, or must not be used, for example if its weights
    are not those of the dataset's earlier results.
    """
    with _IN_MEMORY[_device(evaluation, block)], contextlib.ExitStack() as stack:
        # Frees the previous model, whose caller held it until its context ended.
        if _SHARED.is_set():
            free_memory()
        torch.set_num_threads(evaluation.threads)
        try:
            with _LOADING:
                model = load_model(entry, evaluation.weights, taxonomy)
            identity = model.identity
            if encoder_of(entry) and not encodes:
                model = with_head(model, evaluation.head(model.name), taxonomy)
            stack.callback(_drop, model)
            if not encodes:
                check_head(model, taxonomy)
            if not evaluation.accept_new_weights:
                _check_weights(model, evaluation)
        except (UsageError, JobError) as error:
            raise ModelError(str(error)) from error
        known = KnownModels(evaluation.store, evaluation.weights, taxonomy)
        source, inner = source_of(entry)
        known.store_identity(entry, identity, source.origin(inner, model))
        yield model


def _drop(model: LoadedModel) -> None:
    """Frees the memory of a model, wherever it is.

    Modules hold reference cycles. To break them is faster than to search all objects of the process
    for them, as `free_memory` does. But the user's own code may hold a module of its own.
    """
    if model.is_shared:
        model.module.to("cpu")
        _SHARED.set()
    # A network that was dropped before has nothing, not even its list of modules.
    elif vars(model.module):
        for module in [*model.module.modules()]:
            vars(module).clear()
    give_back_freed_memory()


@contextlib.contextmanager
def on_device(model: LoadedModel, evaluation: Evaluation, block: int = 0) -> Iterator[Predictor]:
    """Moves a model to its device as soon as the device is free; drops it when the context ends.

    A model whose answers are in a file has no device. Raises ModelError if there is no such device,
    or memory does not suffice for the model, or for what the block does with it.
    """
    if given := model.given:
        # Only analyses that need no network get this far.
        scorer = RowsScorer(lambda pictures, keys: given.on(str(pictures.variant), keys))
        yield cast(Predictor, scorer)
        return
    with _DEVICES[_device(evaluation, block)]:
        try:
            with contextlib.closing(
                Predictor(model, evaluation.predict, _pixel_cache(evaluation), block)
            ) as predictor:
                count("models_on_device")
                yield predictor
        except Exception as error:
            if is_out_of_memory(error):
                raise ModelError(
                    "there is not enough memory for it, on its device or on this machine"
                ) from error
            raise
        finally:
            # Makes room on the device for the next model.
            _drop(model)
            # Other processes may share the GPU. Does nothing without one.
            torch.cuda.empty_cache()


def _device(evaluation: Evaluation, block: int) -> torch.device:
    return device_of(evaluation.predict.on_this_machine().device, block)


def _pixel_cache(evaluation: Evaluation) -> PixelCache:
    """Returns the cache of this process; its size is 0 if there is no next model to use it."""
    if len(evaluation.models) == 1:
        return PixelCache(0)
    budget = evaluation.pixel_cache
    if budget is None:
        budget = usable_memory() // 4 // similar_processes()
    return _cache_of(budget, evaluation.predict.on_this_machine().device == "cuda")


_cache_of = functools.lru_cache(1)(PixelCache)


def forget_pictures() -> None:
    """Frees the memory of decoded pictures."""
    _cache_of.cache_clear()


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
    _SHARED.clear()
    gc.collect()
    give_back_freed_memory()
    torch.cuda.empty_cache()
