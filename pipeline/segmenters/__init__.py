"""Segmenters by the name that `--segmenter` gives: the methods of `transforms.segmentation`, masks
that come with the images, and custom functions: `--segmenter python:my_segmenters:salient`.

A custom function takes a picture and a box, and returns a mask. The configuration of a dataset
records two things that the function's masks depend on: the attribute `version` of the function (1
without one), which its author raises when the masks change; and the SHA-256 of each file in the
attribute `files`, such as weights.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from io import BufferedReader
from typing import Any, cast

import numpy as np

from pipeline.errors import JobError, UsageError, text_of
from pipeline.runtime.custom_functions import PREFIX, call_for_array, import_function
from pipeline.storage.files import absolute, files_of
from transforms.annotations import Box
from transforms.geometry import Pixels
from transforms.segmentation import Segmentation, SegmentationError, Segmenter, describe_segmenter


def find_segmenter(name: str, parameters: Sequence[str] = ()) -> Segmenter:
    """Returns the segmenter of a configuration, with its function.

    Arguments and errors are those of `describe_segmenter`. A custom function is imported when the
    first picture arrives.
    """
    segmenter = describe_segmenter(name, parameters)
    if name.startswith(PREFIX):
        return dataclasses.replace(segmenter, segment=CustomFunction(name, tuple(parameters)))
    return segmenter


def parameters_of(name: str) -> tuple[str, ...]:
    """Returns the parameters of a custom function, as `read_parameters` does; empty for other
    segmenters. Raises UsageError like `read_parameters`."""
    return read_parameters(name) if name.startswith(PREFIX) else ()


def read_parameters(name: str) -> tuple[str, ...]:
    """Checks a function before a job, and reads its parameters.

    Args:
      name: `python:MODULE:FUNCTION`.

    Returns:
      (`files=SHA256,SHA256,...`, only if the masks depend on files; `version=VERSION`).

    Raises:
      UsageError: there is no such function, its version or files are not valid, or a file cannot
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
    """The function of a custom segmenter, which is called like any other segmenter's function.

    Attributes:
      name: `python:MODULE:FUNCTION`.
      parameters: result of `read_parameters`.
    """

    name: str
    parameters: tuple[str, ...]

    def __call__(self, image: Pixels, box: Box, seed: int) -> Segmentation:
        function = _checked_function(self.name, self.parameters)
        # A copy, so that the function cannot change the picture.
        call = functools.partial(function, image.copy(), box)
        origin, shape = f"--segmenter {self.name}", image.shape[:2]
        try:
            mask = call_for_array(
                call, origin, dtype=np.bool_, shape=shape, passed_on=SegmentationError
            )
        except SegmentationError as error:  # The user may have derived it.
            raise SegmentationError(text_of(error)) from error
        return Segmentation(mask)


@functools.cache
def _checked_function(name: str, parameters: tuple[str, ...]) -> Callable[..., Any]:
    """Imports a function, once in each process.

    Raises:
      JobError: the function is not found, or differs from the function that the job was started
        with.
    """
    try:
        current = read_parameters(name)
    except UsageError as error:
        raise JobError(f"{error}, on every worker") from error
    if current != parameters:
        raise JobError(
            f"--segmenter {name}: {' '.join(current)} here, not {' '.join(parameters)}. Run the "
            "same command again"
        )
    return _function(name)


def _function(name: str) -> Callable[..., Any]:
    """Imports a function. Raises UsageError if it is not found."""
    target = name.removeprefix(PREFIX)
    return import_function(target, f"--segmenter {name}", f"{PREFIX}my_segmenters:salient")


def _sha256(file: str, name: str) -> str:
    path = absolute(file)
    try:
        with files_of(path).open(path) as content:
            return hashlib.file_digest(cast(BufferedReader, content), "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"--segmenter {name}: {path} cannot be read: {error.strerror}") from error
