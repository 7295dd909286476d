"""A table of images that a user wrote: path, class, boxes or a mask, and perhaps more.

CSV, Parquet, JSON or JSON lines with a row for each box; or COCO's JSON (`pipeline.sources.coco`).
Paths are relative to the table, absolute, or `gs://`. Columns: `docs/own_data.md`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.dataset.manifest import FORMAT as DATASET
from pipeline.errors import UsageError
from pipeline.sources.annotations import annotation_of
from pipeline.sources.coco import coco_objects, is_coco
from pipeline.sources.found import FoundAnnotation, FoundImage
from pipeline.sources.place import text_place
from pipeline.sources.rows import Row, column_names, read_json, read_rows
from pipeline.storage.files import (
    FileInfo,
    absolute,
    files_of,
    in_parallel,
    is_below,
    is_remote,
    join,
    relative,
)
from pipeline.storage.files import parent as folder_of
from transforms.annotations import AnnotationError, Box, annotation_from

FLAG = "--input"
SUFFIXES = (".csv", ".parquet", ".json", ".jsonl")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OF_IMAGE = ("key", "group", "split", "mask", "width", "height")
"""What rows of one image must agree in."""


@dataclasses.dataclass
class _Listed:
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


def check_manifest(path: str) -> None:
    """Looks at the columns of a table.

    Args:
      path: absolute.

    Raises:
      UsageError: a column is missing, or two say the same; or it is no table.
      OSError: it cannot be read.
    """
    if _content_of_coco(path) is not None:
        return
    names = column_names(path, FLAG)
    shown = f"it has {', '.join(map(repr, names)) or 'none'}"
    missing = [name for name in ("image", "class") if name not in names]
    if missing:
        raise UsageError(
            f"{FLAG} {path} has no column {missing[0]!r}: a manifest names a path in image and a "
            f"class in class; {shown}"
        )
    corners = [name for name in _CORNERS if name in names]
    if corners and len(corners) < len(_CORNERS):
        lacking = next(name for name in _CORNERS if name not in names)
        raise UsageError(f"{FLAG} {path} has {corners[0]}, but no column {lacking}; {shown}")
    if corners and "boxes" in names:
        raise UsageError(f"{FLAG} {path} has boxes in two ways: leave out boxes, or {corners[0]}")


def tells_splits(path: str) -> bool:
    """Whether a table says of each image which split it is of."""
    return _content_of_coco(path) is None and "split" in column_names(path, FLAG)


def is_coco_manifest(path: str) -> bool:
    """Whether a table is COCO's."""
    return _content_of_coco(path) is not None


def images_in_manifest(path: str, split: Iterable[str]) -> Iterator[FoundImage]:
    """The images of a split, in the table's order.

    Args:
      path: of the table, absolute.
      split: what the split is called; of no interest where there is no column `split`.

    Raises:
      UsageError: the table is none, or a row cannot be understood; or a file is missing. Boxes
        that are none are left to their image's annotation.
      OSError: something cannot be read.
    """
    root = folder_of(path)
    listed = [image for image in _listed(path, root) if _is_of(image, split)]
    if not listed:
        raise UsageError(f"{FLAG} {path} has no image of split {next(iter(split))!r}")
    infos = _infos(root, listed)
    for image in listed:
        yield _found(image, root, infos)


def files_of_manifest(path: str) -> Iterator[FileInfo]:
    """What the storage says of a table and of all files that it names, of whatever split."""
    own = files_of(path).info(path)
    if own is not None:
        yield own
    root = folder_of(path)
    yield from (info for info in _infos(root, _listed(path, root)).values() if info is not None)


def _listed(path: str, root: str) -> Iterator[_Listed]:
    content = _content_of_coco(path)
    if content is not None:
        return _of_coco(path, root, content)
    check_manifest(path)
    return _of_rows(path, root)


@functools.lru_cache(maxsize=1)
def _parsed(path: str, identity: str) -> Any:
    del identity
    return read_json(path, FLAG)


def _content_of_coco(path: str) -> dict[str, Any] | None:
    """The content of COCO's JSON, None for other tables."""
    if not path.lower().endswith(".json"):
        return None
    info = files_of(path).info(path)
    content = _parsed(path, str(info and (info.size, info.identity)))
    if isinstance(content, list):
        return None
    if isinstance(content, dict) and content.get("format") == DATASET:
        raise UsageError(
            f"{FLAG} {folder_of(path)} is a dataset that in9 made; give the images it was made of"
        )
    if not is_coco(content):
        raise UsageError(
            f"{FLAG} {path} is neither COCO's JSON (images, annotations, categories) nor a list "
            "of objects with image and class"
        )
    return dict(content)


def _of_rows(path: str, root: str) -> Iterator[_Listed]:
    found: dict[str, _Listed] = {}
    for row in read_rows(path, FLAG):
        place = _path(row, "image", root)
        image = found.setdefault(place, _Listed(row, place))
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


def _of_coco(path: str, root: str, content: dict[str, Any]) -> Iterator[_Listed]:
    for number, (about, objects) in enumerate(coco_objects(path, content), 1):
        row = Row(path, number, about, "image")
        image = _Listed(row, _path(row, "file_name", root))
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
    return absolute(text if is_remote(text) else join(root, text))


def _boxes(row: Row) -> list[Any]:
    """What stands for boxes, as it is; none if nothing does."""
    boxes = row.values.get("boxes")
    if isinstance(boxes, str) and boxes.strip():
        try:
            boxes = json.loads(boxes)
        except (ValueError, RecursionError):
            return [boxes]
    if boxes:
        listed = list(boxes) if isinstance(boxes, list | tuple) else [boxes]
        # One box without the list around it.
        return [listed] if all(isinstance(each, int | float) for each in listed) else listed
    corners = [row.text(name) for name in _CORNERS]
    return [corners] if any(corners) else []


def _is_of(image: _Listed, split: Iterable[str]) -> bool:
    return image.about.get("split", "") in ("", *split)


def _infos(root: str, images: Iterable[_Listed]) -> dict[str, FileInfo | None]:
    """What the storage says of the files that rows name, by path.

    Raises:
      UsageError: a file is not there.
    """
    named: dict[str, tuple[Row, str]] = {}
    for image in images:
        column = "image" if "image" in image.row.values else "file_name"
        named.setdefault(image.path, (image.row, column))
        if image.about.get("mask"):
            named.setdefault(_mask_path(image, root), (image.row, "mask"))
    there: dict[str, FileInfo | None] = {}
    if is_remote(root) and any(is_below(path, root) for path in named):
        # One listing for a thousand objects.
        there = {info.path: info for info in files_of(root).walk(root) if info.path in named}
    elsewhere = [path for path in named if path not in there]
    remote = [path for path in elsewhere if is_remote(path)]
    asked = in_parallel(lambda path: files_of(path).info(path), remote) if remote else []
    there.update(zip(remote, asked, strict=True))
    there.update({p: files_of(p).info(p) for p in elsewhere if not is_remote(p)})
    for path, (row, column) in named.items():
        if there[path] is None:
            raise row.error(column, f"there is no file {path} (paths are relative to the manifest)")
    return there


def _mask_path(image: _Listed, root: str) -> str:
    text = image.about["mask"]
    return absolute(text if is_remote(text) else join(root, text))


def _found(image: _Listed, root: str, infos: dict[str, FileInfo | None]) -> FoundImage:
    path = image.path
    name = relative(path, root) if path.startswith(root.rstrip("/") + "/") else path
    mask: str | None = None
    mask_info = None
    if image.about.get("mask"):
        mask = _mask_path(image, root)
        mask_info = infos[mask]
    elif image.segmentations is not None:
        mask = _mask_text(image)
    info = infos[path]
    return FoundImage(
        key=image.about.get("key") or os.path.splitext(name.rpartition("/")[2])[0],
        place=path,
        name=name,
        folder=_class_of(image),
        md5=info.md5 if info else None,
        annotation=_annotation(image),
        group=image.about.get("group", ""),
        mask=mask,
        mask_md5=mask_info.md5 if mask_info else None,
    )


def _mask_text(image: _Listed) -> str | None:
    try:
        sides = {side: int(float(image.about[side])) for side in ("height", "width")}
    except (KeyError, ValueError, OverflowError):
        return None
    content = {**sides, "segmentations": image.segmentations}
    return text_place(json.dumps(content, sort_keys=True, separators=(",", ":")))


def _area(corners: Any) -> int:
    try:
        return Box(*(round(float(corner)) for corner in corners)).area
    except (TypeError, ValueError, OverflowError):
        return -1


def _class_of(image: _Listed) -> str:
    """Class of the largest object, of equals the first; "" if the table says none."""
    named = [(name, corners) for name, corners in image.objects if name]
    return max(named, key=lambda each: _area(each[1]), default=("", None))[0]


def _annotation(image: _Listed) -> FoundAnnotation | None:
    """The boxes, or what is wrong with them; None without any."""
    boxes = [corners for _, corners in image.objects if corners is not None]
    if not boxes:
        return None
    sides = {side: image.about.get(side) for side in ("width", "height")}
    try:
        return annotation_of(annotation_from({**sides, "boxes": boxes}))
    except AnnotationError as error:
        return annotation_of(AnnotationError(f"{image.row}: {error}"))
