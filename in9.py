"""ImageNet-9 from Python: opens datasets, and offers the stages as transforms for Beam pipelines.

import in9

dataset = in9.open_dataset("out", "mixed_rand")
for image, label, meta in dataset:
    ...

What a name needs is imported when the name is used, so reading a dataset needs no Beam or torch.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from pipeline.commands.call import EvaluatedModel
    from pipeline.commands.run import Evaluate, Generate
    from pipeline.dataset.reading import DatasetReader

__all__ = [
    "Evaluate",
    "Generate",
    "evaluate_model",
    "generate_dataset",
    "import_released",
    "open_dataset",
]


def open_dataset(
    path: str | os.PathLike[str], variant: str | None = None, split: str | None = None
) -> DatasetReader:
    """Opens a finished dataset for reading, without Beam and torch.

    Args:
      path: the dataset's folder, local or `gs://`. In a folder of published versions, the newest is
        opened.
      variant: for example `mixed_rand`; None for the dataset's first variant, usually `original`.
      split: for example `train`; None for `val`, else the first other than `train`.

    Raises:
      UsageError: the folder holds no finished dataset.
      ValueError: the dataset has no such variant or split; the message lists the existing ones.
    """
    _check_packages()
    from pipeline.dataset.reading import DatasetReader

    return DatasetReader.open(os.fspath(path), variant, split)


def evaluate_model(
    dataset: str | os.PathLike[str] | DatasetReader,
    predict: Callable[[Any], Any] | torch.nn.Module,
    *,
    name: str,
    outputs: str | None = None,
    preprocessing: Mapping[str, object] | None = None,
    batch_size: int | None = None,
    store: bool = False,
) -> EvaluatedModel:
    """Evaluates a model on all pictures of a dataset, without Beam.

    A module is evaluated as `in9 evaluate` would run it, with the same preprocessing, and on a GPU
    if there is one: its own, or the first. It is copied, and a training around the call goes on bit
    for bit as without it.

    Args:
      dataset: the dataset's folder, local or `gs://`; or what `open_dataset` returned, whose split
        is then evaluated, in all variants. It may be read-only, unless results are stored.
      predict: a `torch.nn.Module`; or a function that takes (n, S, S, 3) uint8 RGB pictures and
        returns (n, outputs) real scores (1000, or one for each class or superclass of the dataset),
        or (n,) integer labels of superclasses, -1 for none of them. NumPy, torch, JAX and
        TensorFlow arrays will do.
      name: name of the model in tables.
      outputs: "imagenet" if integers are classes of ImageNet, 0 to 999, rather than superclasses;
        for datasets whose classes all have WordNet ids of ImageNet.
      preprocessing: settings of a module, such as `{"mean": (0.5, 0.5, 0.5)}`, as for `python:`
        (docs/models.md). The others are timm's if timm made the module, else those that are usual
        for its number of outputs; `result.summary.preprocessing` has all of them.
      batch_size: number of pictures in a batch, at least 1; None for that of `in9 evaluate`.
      store: whether to store predictions, as the model `call:NAME`, in place of an earlier one of
        the name, and to write tables and page. If that fails, the call warns, and returns.

    Raises:
      UsageError: the folder holds no finished dataset, the split no pictures, an argument has a
        value that is not allowed, `predict` returns something else or is a function with
        `preprocessing`, or the module cannot be copied.
      TypeError: `predict` is neither a function nor a module.
      ValueError: the number of outputs fits neither the classes nor the superclasses.
      JobError, ModelError: a picture cannot be decoded, a setting of `preprocessing` is wrong, or
        the module fails.
      Exception: any exception of `predict`.
    """
    _check_packages()
    from pipeline.commands import call

    return call.evaluate_model(
        dataset,
        predict,
        name=name,
        outputs=outputs,
        preprocessing=preprocessing,
        batch_size=batch_size,
        store=store,
    )


def generate_dataset(output: str | os.PathLike[str], **flags: object) -> DatasetReader:
    """Makes a dataset, or the missing part of it, like `in9 generate`; returns it.

    Args:
      output: the dataset's folder, local or `gs://`.
      flags: flags of `in9 generate` by name, for example `input="/data", replicates=3`.

    Raises:
      UsageError: an argument is wrong; nothing has been written then.
      JobError: the job failed.
    """
    _check_packages()
    from pipeline.commands import run

    run.run_main(run.parse_flags("generate", {**flags, "output": os.fspath(output)}), [])
    return open_dataset(output)


def import_released(
    output: str | os.PathLike[str], *, source: str | os.PathLike[str], **flags: object
) -> DatasetReader:
    """Turns data in the released layout into a dataset, like `in9 import`; returns it.

    Args:
      output: the dataset's folder, local or `gs://`.
      source: the folder, or the tar, to import.
      flags: other flags of `in9 import` by name.

    Raises:
      UsageError: an argument is wrong, or the input cannot be read.
      JobError: the job failed.
    """
    _check_packages()
    from pipeline.commands import run
    from pipeline.commands.import_released import run_import

    paths = {"output": os.fspath(output), "from": os.fspath(source)}
    run_import(run.parse_flags("import", {**flags, **paths}))
    return open_dataset(output)


def main() -> NoReturn:
    """Runs the command line, and ends the process with its exit code."""
    try:
        _check_packages()
    except ImportError as error:
        print(f"in9: {error}", file=sys.stderr)
        sys.exit(2)
    from pipeline.commands.cli import run_process

    run_process()


def _check_packages() -> None:
    """Raises ImportError if a user's module hides one of our packages, which have common names."""
    for name in ("pipeline", "transforms"):
        spec = importlib.util.find_spec(name)
        origin = spec and spec.origin
        if origin and os.path.dirname(os.path.dirname(origin)) != os.path.dirname(__file__):
            raise ImportError(
                f"{origin} hides the package {name!r} that in9 is made of; rename it, "
                "or start Python in another folder"
            )


def __getattr__(name: str) -> Any:
    if name not in ("Evaluate", "Generate"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _check_packages()
    from pipeline.commands import run

    return getattr(run, name)


def __dir__() -> list[str]:
    return __all__
