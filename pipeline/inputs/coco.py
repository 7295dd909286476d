"""COCO's JSON as a table of images: `images`, `annotations` with boxes, `categories`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import UsageError

_PARTS = ("images", "annotations", "categories")


@dataclasses.dataclass(frozen=True)
class CocoObject:
    """An object of an image.

    Attributes:
      name: of its category.
      box: corners (xmin, ymin, xmax, ymax), or whatever stands in their place.
      segmentation: run lengths or polygons, None without.
    """

    name: str
    box: Any
    segmentation: Any


def is_coco(content: Any) -> bool:
    """Whether the content of a JSON file has COCO's parts."""
    return isinstance(content, dict) and all(isinstance(content.get(p), list) for p in _PARTS)


def coco_objects(
    path: str, content: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], list[CocoObject]]]:
    """(entry, its objects) of each image, in the file's order.

    Args:
      path: of the file, for messages.
      content: of it.

    Raises:
      UsageError: an image, a category or an annotation lacks what ties them together, or names
        what is not there.
    """
    names: dict[Any, str] = {}
    for each in content["categories"]:
        number = _value(path, each, "categories", "id")
        if number in names:
            raise UsageError(f"{path}: two of categories have the id {number}")
        names[number] = str(_value(path, each, "categories", "name"))
    objects: dict[Any, list[CocoObject]] = {}
    for image in content["images"]:
        number = _value(path, image, "images", "id")
        _value(path, image, "images", "file_name")
        if number in objects:
            raise UsageError(f"{path}: two of images have the id {number}")
        objects[number] = []
    for each in content["annotations"]:
        of_image = _value(path, each, "annotations", "image_id")
        category = _value(path, each, "annotations", "category_id")
        for kind, given, known in (("image", of_image, objects), ("category", category, names)):
            if given not in known:
                raise UsageError(
                    f"{path}: annotation {each.get('id')} names {kind} {given}, which is none of "
                    f"the file's"
                )
        found = CocoObject(names[category], _corners(each.get("bbox")), each.get("segmentation"))
        objects[of_image].append(found)
    for image in content["images"]:
        yield image, objects[image["id"]]


def mask_text(height: int, width: int, segmentations: Sequence[Any]) -> str:
    """A mask as text, which `transforms.masks` decodes.

    Args:
      height, width: of the image, in pixels.
      segmentations: of its objects, run lengths or polygons.
    """
    mask = {"height": height, "width": width, "segmentations": segmentations}
    return json.dumps(mask, sort_keys=True, separators=(",", ":"))


def _value(path: str, entry: Any, part: str, name: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if value is None or not isinstance(value, int | str):
        raise UsageError(f"{path}: an entry of {part} has no {name}: {str(entry)[:60]}")
    return value


def _corners(box: Any) -> Any:
    """Corners of a box given by its upper left one, width and height."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        return box
    return (x, y, x + width, y + height)
