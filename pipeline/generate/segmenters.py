"""Segmenters by the name that `--segmenter` gives.

They are the methods of `transforms.segmentation`, masks that come with the images, and custom
functions: `--segmenter python:my_segmenters:salient`.

A custom function takes a picture and a box, and returns a mask. The configuration records what its
masks depend on: its attribute `version` (1 without one), which its author raises when the masks
change; and the SHA-256 of each file in its attribute `files`, such as weights.

Given masks (`--masks`) are a folder of PNGs named by key, or by class and key (`CLASS/KEY.png`); or
one COCO JSON file, in which `file_name` is read in the same way. COCO's masks are small, so each
travels as text with its image.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.errors import JobError, UsageError, text_of
from pipeline.inputs.annotations import mask_text
from pipeline.inputs.imagenet import files_in
from pipeline.inputs.location import Location
from pipeline.inputs.source_images import FileIndex, KeyedFile, SourceImage
from pipeline.inputs.tables import read_json
from pipeline.runtime.custom_functions import PREFIX, call_for_array, import_function
from pipeline.storage.files import files_of, join
from pipeline.storage.store import Store
from transforms.annotations import Box
from transforms.geometry import Pixels
from transforms.segmentation import Segmentation, SegmentationError, Segmenter, describe_segmenter


def find_segmenter(name: str, parameters: Sequence[str] = ()) -> Segmenter:
    """Returns a configuration's segmenter; arguments and errors as for `describe_segmenter`.

    A custom function is imported when the first picture arrives.
    """
    segmenter = describe_segmenter(name, parameters)
    if name.startswith(PREFIX):
        return dataclasses.replace(segmenter, segment=CustomFunction(name, tuple(parameters)))
    return segmenter


def parameters_of(name: str) -> tuple[str, ...]:
    """Returns the `read_parameters` of a custom function; empty for other segmenters."""
    return read_parameters(name) if name.startswith(PREFIX) else ()


def read_parameters(name: str) -> tuple[str, ...]:
    """Checks a function `python:MODULE:FUNCTION` before a job, and reads its parameters.

    These are `files=SHA256,SHA256,...`, only if the masks depend on files, and `version=VERSION`.
    Raises UsageError if there is no such function, its version or files are not valid, or a file
    cannot be read.
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
    """The function of a custom segmenter, which is called like any other segmenter's function."""

    name: str
    parameters: tuple[str, ...]

    def __call__(self, image: Pixels, box: Box, seed: int) -> Segmentation:
        # A copy, so that the function cannot change the picture.
        call = functools.partial(_checked_function(self.name, self.parameters), image.copy(), box)
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
    """Imports a function, once in each process; JobError if not found, or other than at launch."""
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
    store = Store.at(file)
    try:
        return store.digest("")
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(
            f"--segmenter {name}: {store.root} cannot be read: {error.strerror}"
        ) from error


def is_coco_file(masks: str) -> bool:
    """Returns whether `--masks` names a COCO file, going by its suffix."""
    return masks.lower().endswith(".json")


def check_masks(masks: str) -> None:
    """Raises UsageError if `--masks` is neither a folder nor a COCO file that can be read."""
    files = files_of(masks)
    if is_coco_file(masks):
        if files.info(masks) is None:
            raise UsageError(f"--masks {masks} is not a file that can be read")
        check_coco("--masks of a COCO file")
    elif not files.is_folder(masks):
        raise UsageError(f"--masks {masks} is neither a folder of PNGs nor a COCO .json file")


def check_coco(feature: str) -> None:
    """Raises UsageError if the library that reads COCO's masks is not installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise UsageError(f"{feature} needs pycocotools: pip install 'imagenet9-pipeline[coco]'")


def index_masks(masks: str, split: str) -> FileIndex:
    """Indexes a split's masks: a COCO file, or a folder that may have one for the split."""
    return FileIndex(_in_coco_file(masks) if is_coco_file(masks) else _in_folder(masks, split))


def no_mask(image: SourceImage, masks: str, split: str, index: FileIndex) -> UsageError:
    """Returns the error for a split without masks, with the given image as an example."""
    expected = (
        f"file names such as {image.key}.JPEG"
        if is_coco_file(masks)
        else f"{image.key}.png, or {image.wnid}/{image.key}.png"
    )
    return UsageError(
        f"no image of {split!r} has a mask in --masks {masks}, which has {len(index)} masks; "
        f"expected {expected}"
    )


def _in_folder(masks: str, split: str) -> Iterator[KeyedFile]:
    of_split = join(masks, split)
    return files_in(of_split if files_of(of_split).is_folder(of_split) else masks, (".png",))


def _in_coco_file(path: str) -> Iterator[KeyedFile]:
    """Yields one mask for each image that has objects; the mask covers all of them."""
    try:
        content = read_json(path, "--masks")
        objects: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        for each in content["annotations"]:
            objects[each["image_id"]].append(each["segmentation"])
        images = [
            (str(image["file_name"]), image["id"], image["height"], image["width"])
            for image in content["images"]
        ]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"--masks {path} is not a COCO file: {type(error).__name__} {error}"
        ) from error
    for name, number, height, width in images:
        if objects[number]:
            folder, file = os.path.split(name)
            yield KeyedFile(
                folder=os.path.basename(folder),
                key=os.path.splitext(file)[0],
                location=Location(text=mask_text(height, width, objects[number])),
            )
