"""COCO's JSON as a table of images: `images`, `annotations` with boxes, `categories`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from pipeline.errors import UsageError

Content = dict[str, list[Any]]
"""The content of COCO's JSON."""
_PARTS = ("images", "annotations", "categories")


@dataclasses.dataclass(frozen=True)
class CocoObject:
    """An object of an image.

    Attributes:
      name: name of the category.
      box: corners (xmin, ymin, xmax, ymax) in pixels; the original value if it is not four numbers.
      segmentation: run lengths or polygons; None if the object has neither.
    """

    name: str
    box: object
    segmentation: object


def is_coco(content: object) -> TypeGuard[Content]:
    """Returns whether the content of a JSON file has COCO's parts."""
    return isinstance(content, dict) and all(isinstance(content.get(p), list) for p in _PARTS)


def coco_objects(path: str, content: Content) -> Iterator[tuple[dict[str, Any], list[CocoObject]]]:
    """Yields (entry, objects) for each image, in the order of the file.

    Args:
      path: path of the file, for messages.
      content: the parsed content of the file.

    Raises:
      UsageError: an image, a category or an annotation lacks an id or a name, or refers to an id
        that the file does not have; or two images, or two categories, have the same id.
    """
    names: dict[int | str, str] = {}
    for category in content["categories"]:
        number = _value(path, category, "categories", "id")
        if number in names:
            raise UsageError(f"{path}: two categories have the id {number}")
        names[number] = str(_value(path, category, "categories", "name"))
    objects: dict[int | str, list[CocoObject]] = {}
    for image in content["images"]:
        number = _value(path, image, "images", "id")
        _value(path, image, "images", "file_name")
        if number in objects:
            raise UsageError(f"{path}: two images have the id {number}")
        objects[number] = []
    for each in content["annotations"]:
        image_id = _value(path, each, "annotations", "image_id")
        category_id = _value(path, each, "annotations", "category_id")
        for kind, number, known in (
            ("image", image_id, objects),
            ("category", category_id, names),
        ):
            if number not in known:
                raise UsageError(
                    f"{path}: annotation {each.get('id')} names {kind} {number}, which the file "
                    "does not have"
                )
        objects[image_id].append(
            CocoObject(names[category_id], _corners(each.get("bbox")), each.get("segmentation"))
        )
    for image in content["images"]:
        yield image, objects[image["id"]]


def mask_text(height: int, width: int, segmentations: Sequence[object]) -> str:
    """Returns a mask as text, which `transforms.masks` decodes.

    Args:
      height, width: size of the image, in pixels.
      segmentations: run lengths or polygons of the image's objects.
    """
    mask = {"height": height, "width": width, "segmentations": segmentations}
    return json.dumps(mask, sort_keys=True, separators=(",", ":"))


def _value(path: str, entry: object, part: str, name: str) -> int | str:
    value = entry.get(name) if isinstance(entry, dict) else None
    if value is None or not isinstance(value, int | str):
        raise UsageError(f"{path}: an entry of {part} has no {name}: {str(entry)[:60]}")
    return value


def _corners(box: Any) -> object:
    """Returns the corners of a box that is given as (x, y, width, height), where (x, y) is its
    upper left corner. Returns a box that is not four numbers unchanged."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        return box
    return (x, y, x + width, y + height)
