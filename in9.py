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
    from pipeline.commands.call import evaluate_model
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


_MODULES = {
    "Evaluate": "pipeline.commands.run",
    "Generate": "pipeline.commands.run",
    "evaluate_model": "pipeline.commands.call",
}
"""Where names are defined that are imported when they are first used."""


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


def generate_dataset(output: str | os.PathLike[str], **flags: object) -> DatasetReader:
    """Makes a dataset, or the missing part of it, like `in9 generate` with threads; returns it.

    Args:
      output: the dataset's folder, local or `gs://`.
      flags: flags and keys of `in9 generate` by name, for example `input="/data", replicates=3`.

    Raises:
      UsageError: an argument is wrong; nothing has been written then.
      JobError: the job failed.
    """
    _check_packages()
    from pipeline.commands import run

    run.run_main(
        run.parse_flags("generate", {**flags, "output": os.fspath(output)}),
        # A process would run the caller's script again, unless that has a guard.
        ["--direct_running_mode=multi_threading"],
    )
    return open_dataset(output)


def import_released(
    output: str | os.PathLike[str], *, source: str | os.PathLike[str], **flags: object
) -> DatasetReader:
    """Turns data in the released layout into a dataset, like `in9 import`; returns it.

    Args:
      output: the dataset's folder, local or `gs://`.
      source: the folder, or the tar, to import; `paper:` fetches that of the paper's authors.
      flags: other flags and keys of `in9 import` by name.

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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _check_packages()
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
