"""A table of images that a user wrote: path, class, boxes or a mask, and perhaps more.

CSV, Parquet, JSON or JSON lines with a row for each box; or COCO's JSON (`pipeline.inputs.coco`).
Paths are relative to the table, absolute, or `gs://`. Columns: `docs/own_data.md`.

What a manifest says of each image: its rows, or COCO's entries, put together by image.
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
from pipeline.inputs.annotation_index import annotation_of
from pipeline.inputs.coco import coco_objects, is_coco, mask_text
from pipeline.inputs.input_format import InputFormat, SplitLayout
from pipeline.inputs.location import text_location
from pipeline.inputs.parquet import holds_pictures
from pipeline.inputs.source_images import SourceImage
from pipeline.inputs.split_files import names_of
from pipeline.inputs.table_rows import TableRow, column_names, read_json, read_rows
from pipeline.storage.file_kind import FileInfo
from pipeline.storage.files import absolute, files_of, is_below, is_remote, join, parent, relative
from pipeline.storage.parallel import in_parallel
from transforms.annotations import AnnotationError, Box, annotation_from
from transforms.taxonomy import Taxonomy

_SUFFIXES = (".csv", ".parquet", ".json", ".jsonl")


class ImageManifest(InputFormat):
    """A table that names the images, and their boxes."""

    kind = "manifest"
    may_hold_boxes = True
    takes_annotations = False

    def find(self, root: str, split: str) -> SplitLayout | None:
        path = _find_manifest(root, split)
        if path is None:
            return None
        check_manifest(path)
        return SplitLayout(self.kind, split, parent(path), parent(path), (path,))

    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage]:
        return images_in_manifest(layout.files[0], names_of(layout.split))


def _find_manifest(root: str, split: str) -> str | None:
    """Returns the path of the table, which is the input itself or lies in it."""
    lower = root.lower()
    if files_of(root).info(root) is not None:
        is_table = lower.endswith(_SUFFIXES)
        if lower.endswith(".parquet"):
            is_table = not holds_pictures(root)
        return root if is_table else None
    existing = set(files_of(root).children(root))
    for stem in (f"manifest_{split}", "manifest"):
        for suffix in _SUFFIXES:
            if join(root, stem + suffix) in existing:
                return join(root, stem + suffix)
    return None


def check_manifest(path: str) -> None:
    """Looks at the columns of a table.

    Args:
      path: absolute.

    Raises:
      UsageError: a column is missing, or two say the same; or it is no table.
      OSError: it cannot be read.
    """
    if content_of_coco(path) is not None:
        return
    names = column_names(path, FLAG)
    shown = f"it has {', '.join(map(repr, names)) or 'none'}"
    missing = [name for name in ("image", "class") if name not in names]
    if missing:
        raise UsageError(
            f"{FLAG} {path} has no column {missing[0]!r}: a manifest names a path in image and a "
            f"class in class; {shown}"
        )
    corners = [name for name in CORNERS if name in names]
    if corners and len(corners) < len(CORNERS):
        lacking = next(name for name in CORNERS if name not in names)
        raise UsageError(f"{FLAG} {path} has {corners[0]}, but no column {lacking}; {shown}")
    if corners and "boxes" in names:
        raise UsageError(f"{FLAG} {path} has boxes in two ways: leave out boxes, or {corners[0]}")


def tells_splits(path: str) -> bool:
    """Whether a table says of each image which split it is of."""
    return content_of_coco(path) is None and "split" in column_names(path, FLAG)


def is_coco_manifest(path: str) -> bool:
    """Whether a table is COCO's."""
    return content_of_coco(path) is not None


def images_in_manifest(path: str, split: Iterable[str]) -> Iterator[SourceImage]:
    """The images of a split, in the table's order.

    Args:
      path: of the table, absolute.
      split: what the split is called; of no interest where there is no column `split`.

    Raises:
      UsageError: the table is none, or a row cannot be understood; or a file is missing. Boxes
        that are none are left to their image's annotation.
      OSError: something cannot be read.
    """
    root = parent(path)
    listed = [image for image in _listed(path, root) if _is_of(image, split)]
    if not listed:
        raise UsageError(f"{FLAG} {path} has no image of split {next(iter(split))!r}")
    infos = _infos(root, listed)
    for image in listed:
        yield _found(image, root, infos)


def _listed(path: str, root: str) -> Iterator[ListedImage]:
    content = content_of_coco(path)
    if content is not None:
        return images_of_coco(path, root, content)
    check_manifest(path)
    return images_of_rows(path, root)


def _is_of(image: ListedImage, split: Iterable[str]) -> bool:
    return image.about.get("split", "") in ("", *split)


def _infos(root: str, images: Iterable[ListedImage]) -> dict[str, FileInfo | None]:
    """What the storage says of the files that rows name, by path.

    Raises:
      UsageError: a file is not there.
    """
    named: dict[str, tuple[TableRow, str]] = {}
    for image in images:
        column = "image" if "image" in image.row.values else "file_name"
        named.setdefault(image.path, (image.row, column))
        if image.about.get("mask"):
            named.setdefault(path_from(root, image.about["mask"]), (image.row, "mask"))
    there: dict[str, FileInfo | None] = {}
    if is_remote(root) and any(is_below(path, root) for path in named):
        # One listing for a thousand objects.
        there = {info.path: info for info in files_of(root).walk(root) if info.path in named}
    elsewhere = [path for path in named if path not in there]
    remote = [path for path in elsewhere if is_remote(path)]
    asked = in_parallel(lambda path: files_of(path).info(path), remote) if remote else []
    there.update(zip(remote, asked, strict=True))
    for path in elsewhere:
        if not is_remote(path):
            try:
                there[path] = files_of(path).info(path)
            except UsageError as error:
                row, column = named[path]
                raise row.error(column, str(error)) from error
    for path, (row, column) in named.items():
        if there[path] is None:
            raise row.error(column, f"there is no file {path} (paths are relative to the manifest)")
    return there


def _found(image: ListedImage, root: str, infos: dict[str, FileInfo | None]) -> SourceImage:
    path = image.path
    name = relative(path, root) if path.startswith(root.rstrip("/") + "/") else path
    mask: str | None = None
    mask_info = None
    if image.about.get("mask"):
        mask = path_from(root, image.about["mask"])
        mask_info = infos[mask]
    elif image.segmentations is not None:
        mask = _mask_text(image.about, image.segmentations)
    info = infos[path]
    return SourceImage(
        key=image.about.get("key") or os.path.splitext(name.rpartition("/")[2])[0],
        path=path,
        name=name,
        wnid=_class_of(image),
        md5=info.md5 if info else None,
        annotation=_annotation(image),
        group=image.about.get("group", ""),
        mask=mask,
        mask_md5=mask_info.md5 if mask_info else None,
    )


def _mask_text(about: dict[str, Any], segmentations: list[Any]) -> str | None:
    """The place of a mask that the table itself holds, None where the image has no size."""
    try:
        height, width = (int(float(about[side])) for side in ("height", "width"))
    except (KeyError, ValueError, OverflowError):
        return None
    return text_location(mask_text(height, width, segmentations))


def _area(corners: Any) -> int:
    try:
        return Box(*(round(float(corner)) for corner in corners)).area
    except (TypeError, ValueError, OverflowError):
        return -1


def _class_of(image: ListedImage) -> str:
    """Class of the largest object, of equals the first; "" if the table says none."""
    named = [(name, corners) for name, corners in image.objects if name]
    return max(named, key=lambda each: _area(each[1]), default=("", None))[0]


def _annotation(image: ListedImage) -> str | None:
    """The place of the boxes, or of what is wrong with them; None without any."""
    boxes = [corners for _, corners in image.objects if corners is not None]
    if not boxes:
        return None
    sides = {side: image.about.get(side) for side in ("width", "height")}
    try:
        return annotation_of(annotation_from({**sides, "boxes": boxes}))
    except AnnotationError as error:
        return annotation_of(AnnotationError(f"{image.row}: {error}"))


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

    row: TableRow
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
        row = TableRow(path, number, about, "image")
        image = ListedImage(row, _path(row, "file_name", root))
        for column in _OF_IMAGE:
            if row.text(column):
                image.about[column] = row.text(column)
        image.objects = [(each.name, each.box) for each in objects]
        if objects and all(each.segmentation for each in objects):
            image.segmentations = [each.segmentation for each in objects]
        yield image


def _path(row: TableRow, column: str, root: str) -> str:
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


def _boxes(row: TableRow) -> list[Any]:
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
