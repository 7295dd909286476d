"""What a manifest says of each image: its rows, or COCO's entries, put together by image."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

from pipeline.dataset.manifest import FORMAT as DATASET
from pipeline.errors import UsageError
from pipeline.inputs.coco import coco_objects, is_coco
from pipeline.inputs.rows import Row, read_json, read_rows
from pipeline.storage.files import absolute, files_of, join, parent

FLAG = "--input"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OF_IMAGE = ("key", "group", "split", "mask", "width", "height")
"""What rows of one image must agree in."""


@dataclasses.dataclass
class ListedImage:
    """An image that the table names: its first row, what all its rows say of it, and its objects.

    Attributes:
      row: the first.
      path: absolute.
      about: columns of `_OF_IMAGE` that any row fills.
      objects: (class, corners or None without a box) of each row.
      segmentations: of COCO's objects, in their order; None if one has none.
    """

    row: Row
    path: str
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    objects: list[tuple[str, Any]] = dataclasses.field(default_factory=list)
    segmentations: list[Any] | None = None


@functools.lru_cache(maxsize=1)
def _parsed(path: str, identity: str) -> Any:
    """JSON that is asked for several times in a row; `identity` tells a rewritten file apart."""
    del identity
    return read_json(path, FLAG)


def content_of_coco(path: str) -> dict[str, Any] | None:
    """The content of COCO's JSON, None for other tables.

    Raises:
      UsageError: it is JSON of neither kind.
      OSError: it cannot be read.
    """
    if not path.lower().endswith(".json"):
        return None
    info = files_of(path).info(path)
    content = _parsed(path, str(info and (info.size, info.identity)))
    if isinstance(content, list):
        return None
    if isinstance(content, dict) and content.get("format") == DATASET:
        raise UsageError(
            f"{FLAG} {parent(path)} is a dataset that in9 made; give the images it was made of"
        )
    if not is_coco(content):
        raise UsageError(
            f"{FLAG} {path} is neither COCO's JSON (images, annotations, categories) nor a list "
            "of objects with image and class"
        )
    return dict(content)


def images_of_rows(path: str, root: str) -> Iterator[ListedImage]:
    """The images of a table with a row for each box, in order of their first rows.

    Args:
      path: of the table, absolute.
      root: the folder that paths in it are relative to.

    Raises:
      UsageError: a row names no file, or contradicts another of the same image.
    """
    found: dict[str, ListedImage] = {}
    for row in read_rows(path, FLAG):
        place = _path(row, "image", root)
        image = found.setdefault(place, ListedImage(row, place))
        for column in _OF_IMAGE:
            value = row.text(column)
            if value and image.about.setdefault(column, value) != value:
                raise row.error(
                    column, f"{value!r} is another than in {image.row}, of the same image"
                )
        boxes = _boxes(row)
        for box in boxes or [None]:
            image.objects.append((row.text("class"), box))
    return iter(found.values())


def images_of_coco(path: str, root: str, content: dict[str, Any]) -> Iterator[ListedImage]:
    """The images of COCO's JSON, in its order.

    Args:
      path, root: as for `images_of_rows`.
      content: of `content_of_coco`.

    Raises:
      UsageError: as `coco_objects`, or an image names no file.
    """
    for number, (about, objects) in enumerate(coco_objects(path, content), 1):
        row = Row(path, number, about, "image")
        image = ListedImage(row, _path(row, "file_name", root))
        for column in _OF_IMAGE:
            if row.text(column):
                image.about[column] = row.text(column)
        image.objects = [(each.name, each.box) for each in objects]
        if objects and all(each.segmentation for each in objects):
            image.segmentations = [each.segmentation for each in objects]
        yield image


def _path(row: Row, column: str, root: str) -> str:
    text = row.text(column)
    if not text or "\0" in text:
        raise row.error(column, "names no file")
    try:
        return path_from(root, text)
    except UsageError as error:
        raise row.error(column, str(error)) from error


def path_from(root: str, text: str) -> str:
    """Absolute path of a file that a table names."""
    return absolute(text if "://" in text else join(root, text))


def _boxes(row: Row) -> list[Any]:
    """What stands for boxes, as it is; none if nothing does."""
    boxes = row.values.get("boxes")
    if isinstance(boxes, str):
        try:
            boxes = json.loads(boxes) if boxes.strip() else None
        except (ValueError, RecursionError):
            return [boxes]
    if boxes:
        listed = list(boxes) if isinstance(boxes, list | tuple) else [boxes]
        # One box without the list around it.
        return [listed] if all(isinstance(each, int | float) for each in listed) else listed
    corners = [row.text(name) for name in CORNERS]
    return [corners] if any(corners) else []
