"""Segmenters of the user's: `--segmenter python:my_segmenters:salient`.

The function takes a picture and a box, and returns a mask. A configuration holds what decides
its masks beside the code: the function's attribute `version`, or 1, which who changes the masks
raises; and the SHA-256 of the files that its attribute `files` names, such as weights.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable
from io import BufferedReader
from typing import Any, cast

import numpy as np

from pipeline.errors import JobError, UsageError
from pipeline.runtime.custom_functions import PREFIX, call_for_array, import_function
from pipeline.storage.files import absolute, files_of
from transforms.annotations import Box
from transforms.geometry import Pixels
from transforms.segmentation import Segmentation, SegmentationError


def read_parameters(name: str) -> tuple[str, ...]:
    """Looks at a function before a job.

    Args:
      name: `python:MODULE:FUNCTION`.

    Returns:
      What decides its masks, `name=value` each.

    Raises:
      UsageError: there is no such function, its version or files will not do, or a file cannot
        be read.
    """
    function = _function(name)
    version, files = getattr(function, "version", 1), getattr(function, "files", ())
    if type(version) not in (int, str):
        raise UsageError(f"--segmenter {name}: its version must be a whole number or a text")
    if not isinstance(files, list | tuple) or not all(
        isinstance(file, str | os.PathLike) for file in files
    ):
        raise UsageError(f"--segmenter {name}: its files must be a list of paths")
    digests = [_sha256(os.fspath(file), name) for file in files]
    return (*([f"files={','.join(digests)}"] if digests else []), f"version={version}")


@dataclasses.dataclass(frozen=True)
class CustomFunction:
    """The function of a user's segmenter, called as others are.

    Attributes:
      name, parameters: as `read_parameters` takes and gives them.
    """

    name: str
    parameters: tuple[str, ...]

    def __call__(self, image: Pixels, box: Box, seed: int) -> Segmentation:
        function = _checked_function(self.name, self.parameters)
        # Copied, so that it cannot change the picture.
        return Segmentation(
            call_for_array(
                functools.partial(function, image.copy(), box),
                f"--segmenter {self.name}",
                dtype=np.bool_,
                shape=image.shape[:2],
                passed_on=SegmentationError,
            )
        )


@functools.cache
def _checked_function(name: str, parameters: tuple[str, ...]) -> Callable[..., Any]:
    """Imports a function, once in each process.

    Raises:
      JobError: it is not to be found, or not the one that the job was started with.
    """
    try:
        found = read_parameters(name)
    except UsageError as error:
        raise JobError(f"{error}, on every worker") from error
    if found != parameters:
        raise JobError(
            f"--segmenter {name}: {' '.join(found)} here, not {' '.join(parameters)}. Run the same "
            "command again"
        )
    return _function(name)


def _function(name: str) -> Callable[..., Any]:
    """Imports a function. Raises UsageError if there is none."""
    target = name.removeprefix(PREFIX)
    return import_function(target, f"--segmenter {name}", f"{PREFIX}my_segmenters:salient")


def _sha256(file: str, name: str) -> str:
    path = absolute(file)
    try:
        with files_of(path).open(path) as content:
            return hashlib.file_digest(cast(BufferedReader, content), "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"--segmenter {name}: {path} cannot be read: {error.strerror}") from error
