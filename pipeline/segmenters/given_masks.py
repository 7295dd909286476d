"""`--masks`: finds the mask of each image.

Masks are a folder of PNGs named by key, or by class and key (`CLASS/KEY.png`); or one COCO JSON
file, in which `file_name` is read in the same way. COCO's masks are small, so each travels as text
with its image.
"""

from __future__ import annotations

import importlib.util
import posixpath
from collections.abc import Iterator
from typing import Any

from pipeline.errors import UsageError
from pipeline.inputs.annotations import mask_text
from pipeline.inputs.imagenet import files_in
from pipeline.inputs.location import text_location
from pipeline.inputs.source_images import FileIndex, KeyedFile, SourceImage
from pipeline.inputs.tables import read_json
from pipeline.storage.files import files_of, join

_SUFFIX = ".png"


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
    """Raises UsageError if the library that reads COCO's masks is not installed.

    Args:
      feature: what needs the library, for the message.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise UsageError(f"{feature} needs pycocotools: pip install 'imagenet9-pipeline[coco]'")


def index_masks(masks: str, split: str) -> FileIndex:
    """Indexes the masks of a split.

    Args:
      masks: absolute path of a COCO file, or of a folder, in which the split may have a folder of
        its own.
      split: name of the split.

    Raises:
      UsageError: the file is not a COCO file.
      OSError: the masks cannot be read.
    """
    return FileIndex(_in_coco_file(masks) if is_coco_file(masks) else _in_folder(masks, split))


def no_mask(image: SourceImage, masks: str, split: str, index: FileIndex) -> UsageError:
    """Returns the error for a split in which no image has a mask. The given image serves as an
    example in the message."""
    expected = f"{image.key}.png, or {image.wnid}/{image.key}.png"
    if is_coco_file(masks):
        expected = f"file names such as {image.key}.JPEG"
    return UsageError(
        f"no image of {split!r} has a mask in --masks {masks}, which has {len(index)} masks; "
        f"expected {expected}"
    )


def _in_folder(masks: str, split: str) -> Iterator[KeyedFile]:
    of_split = join(masks, split)
    return files_in(of_split if files_of(of_split).is_folder(of_split) else masks, (_SUFFIX,))


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
            folder, file = posixpath.split(name)
            yield KeyedFile(
                folder=posixpath.basename(folder),
                key=posixpath.splitext(file)[0],
                path=text_location(mask_text(height, width, objects[number])),
            )
