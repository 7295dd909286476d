"""Input tables, which a user wrote: path, class, and boxes or mask of each image.

A table is CSV, Parquet, JSON or JSON lines with a row for each box, or COCO's JSON
(`pipeline.inputs.annotations`). Paths in it are relative to the table, absolute, or `gs://`.
`docs/data.md` explains the columns.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.dataset.manifest import FORMAT as DATASET
from pipeline.dataset.manifest import MANIFEST
from pipeline.errors import UsageError
from pipeline.inputs.annotations import Content, annotation_of, coco_objects, is_coco, mask_text
from pipeline.inputs.input_format import InputFormat, SplitLayout, names_of
from pipeline.inputs.location import Location, reads_ahead
from pipeline.inputs.source_images import SourceImage
from pipeline.inputs.tables import TableRow, column_names, holds_pictures, read_json, read_rows
from pipeline.storage.files import absolute, files_of, is_below, is_remote, join, parent, relative
from pipeline.storage.interface import FileInfo, read_ahead
from transforms.annotations import AnnotationError, Box, annotation_from
from transforms.limits import load_json
from transforms.taxonomy import Taxonomy

FLAG = "--input"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SUFFIXES = (".csv", ".parquet", ".json", ".jsonl")
_IMAGE_COLUMNS = ("key", "group", "split", "mask", "width", "height")
"""Columns in which all rows of one image must agree."""
_COLUMNS = ("image", "class", *CORNERS, "boxes", *_IMAGE_COLUMNS)


def named_columns(words: Sequence[str]) -> dict[str, str]:
    """Returns the names that a table has for columns, by ours, from the value of a flag.

    Words are such as `image=filename`, ours first, where `label` also stands for `class`. Raises
    UsageError if a word is wrong, or names a column again.
    """
    columns: dict[str, str] = {}
    for word in words:
        name, _, column = (part.strip() for part in word.partition("="))
        name = {"label": "class"}.get(name, name)
        if name not in _COLUMNS or not column:
            raise UsageError(
                f"--input_columns {word}: expected NAME=COLUMN, where NAME is one of "
                f"{', '.join(_COLUMNS)}, or label for class"
            )
        if name in columns or column in columns.values():
            raise UsageError(f"--input_columns {word}: {name} or {column} is named twice")
        columns[name] = column
    return columns


def _names(columns: Mapping[str, str]) -> dict[str, str | None]:
    """Returns a table's names of all columns by ours; None for one that is read for another."""
    taken = columns.values()
    return {name: columns.get(name, None if name in taken else name) for name in _COLUMNS}


class InputTable(InputFormat):
    """A table that names the images and their boxes."""

    kind = "input table"
    may_hold_boxes = True
    takes_annotations = False

    def find(self, root: str, split: str) -> SplitLayout | None:
        return find_table(root, split, {})

    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage]:
        """Yields the images of a split, in the order of the table.

        The split only matters if the table has a column `split`. UsageError is also raised if a
        file that a row names is missing. Boxes that are not valid reject the image later, and raise
        no error.
        """
        (path,), root = layout.files, layout.root
        content = content_of_coco(path)
        if content is None:
            check_table(path, layout.columns)
            rows = images_of_rows(path, root, layout.columns)
        else:
            rows = images_of_coco(path, root, content)
        splits = ("", *names_of(layout.split))
        listed = [image for image in rows if image.columns.get("split", "") in splits]
        if not listed:
            raise UsageError(f"{FLAG} {path} has no image of split {layout.split!r}")
        infos = _file_infos(root, listed)
        for image in listed:
            yield _source_image(image, root, infos)


@dataclasses.dataclass
class ListedImage:
    """An image that the table names, with the content of all its rows.

    Attributes:
      row: the first row.
      columns: values of those `_IMAGE_COLUMNS` that at least one row fills.
      objects: (class, corners) of each object; the corners are None if the object has no box.
      segmentations: the segmentations of COCO's objects, in order; None if any object has none.
    """

    row: TableRow
    path: str
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    objects: list[tuple[str, object]] = dataclasses.field(default_factory=list)
    segmentations: list[object] | None = None


def find_table(root: str, split: str, columns: Mapping[str, str]) -> SplitLayout | None:
    """Finds a split in a table, by columns of `named_columns`; raises as `InputFormat.find`."""
    path = _path_of_table(root, split, columns.get("image", "image"))
    if path is None:
        return None
    check_table(path, columns)
    return SplitLayout(InputTable.kind, split, parent(path), parent(path), (path,), columns=columns)


def _path_of_table(root: str, split: str, column: str) -> str | None:
    """Returns the path of the table with this column: the input, or a file in it; None if none."""
    lower = root.lower()
    if files_of(root).info(root) is not None:
        is_other_parquet = lower.endswith(".parquet") and holds_pictures(root, column)
        return root if lower.endswith(_SUFFIXES) and not is_other_parquet else None
    existing = set(files_of(root).file_paths(root))
    if (of_dataset := join(root, MANIFEST)) in existing:
        _refuse_dataset(of_dataset, read_json(of_dataset, FLAG))
    paths = (
        join(root, stem + suffix)
        for stem in (f"input_table_{split}", "input_table")
        for suffix in _SUFFIXES
    )
    return next((path for path in paths if path in existing), None)


def check_table(path: str, columns: Mapping[str, str]) -> None:
    """Checks a table; UsageError if it is none, lacks a column, or gives boxes in two ways."""
    if content_of_coco(path) is not None:
        if columns:
            raise UsageError(f"--input_columns: {path} is COCO's JSON, which has no columns")
        return
    names = column_names(path, FLAG)
    shown = f"it has {', '.join(map(repr, names)) or 'none'}"
    named = _names(columns)
    corners = [named[name] for name in CORNERS if named[name] in names]
    needed = (*("image", "class"), *(CORNERS if corners else ()), *columns)
    missing = [
        repr(named[name]) if named[name] else f"{name!r} that --input_columns leaves"
        for name in dict.fromkeys(needed)
        if named[name] not in names
    ]
    if missing:
        raise UsageError(
            f"{FLAG} {path} has no column{'s' * (len(missing) > 1)} "
            f"{', '.join(missing)}: an input table names a path in image and a class in "
            f"class, and perhaps boxes in {', '.join(CORNERS)}, or in others that --input_columns "
            f"names; {shown}"
        )
    if corners and named["boxes"] in names:
        raise UsageError(f"{FLAG} {path} has boxes in two ways: leave out boxes, or {corners[0]}")


def tells_splits(path: str, columns: Mapping[str, str]) -> bool:
    """Returns whether a table has a column that names the split of each image."""
    return content_of_coco(path) is None and _names(columns)["split"] in column_names(path, FLAG)


def _file_infos(root: str, images: Iterable[ListedImage]) -> dict[str, FileInfo | None]:
    """Returns the `FileInfo` of files that rows name, by path; UsageError if one does not exist."""
    named: dict[str, tuple[TableRow, str]] = {}
    for image in images:
        column = "image" if image.row.text("image") else "file_name"
        named.setdefault(image.path, (image.row, column))
        if image.columns.get("mask"):
            named.setdefault(path_from(root, image.columns["mask"]), (image.row, "mask"))
    infos: dict[str, FileInfo | None] = {}
    if is_remote(root) and any(is_below(path, root) for path in named):
        # A listing takes one request for a thousand objects.
        infos = {info.path: info for info in files_of(root).walk(root) if info.path in named}
    elsewhere = [path for path in named if path not in infos]

    def find(path: str) -> FileInfo | None:
        try:
            return files_of(path).info(path)
        except UsageError as error:
            row, column = named[path]
            raise row.error(column, str(error)) from error

    infos.update(read_ahead(find, elsewhere, reads_ahead(map(Location, elsewhere))))
    for path, (row, column) in named.items():
        if infos[path] is None:
            raise row.error(column, f"there is no file {path} (paths are relative to the table)")
    return infos


def _source_image(image: ListedImage, root: str, infos: dict[str, FileInfo | None]) -> SourceImage:
    path = image.path
    name = relative(path, root) if path.startswith(root.rstrip("/") + "/") else path
    mask, mask_info = None, None
    if image.columns.get("mask"):
        mask_path = path_from(root, image.columns["mask"])
        mask, mask_info = Location(mask_path), infos[mask_path]
    elif image.segmentations is not None:
        mask = _mask_location(image.columns, image.segmentations)
    info = infos[path]
    return SourceImage(
        key=image.columns.get("key") or os.path.splitext(name.rpartition("/")[2])[0],
        location=Location(path),
        name=name,
        wnid=_class_of(image),
        md5=info.md5 if info else None,
        annotation=_annotation(image),
        group=image.columns.get("group", ""),
        mask=mask,
        mask_md5=mask_info.md5 if mask_info else None,
    )


def _mask_location(columns: dict[str, str], segmentations: list[object]) -> Location | None:
    """Returns the location of a mask that the table holds; None if it lacks the image's size."""
    try:
        height, width = (int(float(columns[side])) for side in ("height", "width"))
    except (KeyError, ValueError, OverflowError):
        return None
    return Location(text=mask_text(height, width, segmentations))


def _area(corners: Any) -> int:
    try:
        return Box(*(round(float(corner)) for corner in corners)).area
    except (TypeError, ValueError, OverflowError):
        return -1


def _class_of(image: ListedImage) -> str:
    """Returns the class of the largest object, the first of equals; "" if no row names a class."""
    named = [(name, corners) for name, corners in image.objects if name]
    return max(named, key=lambda each: _area(each[1]), default=("", None))[0]


def _annotation(image: ListedImage) -> Location | None:
    """Returns the location of the boxes, or of the message on invalid boxes; None without boxes."""
    boxes = [corners for _, corners in image.objects if corners is not None]
    if not boxes:
        return None
    sides = {side: image.columns.get(side) for side in ("width", "height")}
    try:
        return annotation_of(annotation_from({**sides, "boxes": boxes}))
    except AnnotationError as error:
        return annotation_of(AnnotationError(f"{image.row}: {error}"))


@functools.lru_cache(maxsize=1)
def _parse_json(path: str, identity: str) -> object:
    """Reads JSON once for several calls in a row; a rewritten file has another `identity`."""
    return read_json(path, FLAG)


def content_of_coco(path: str) -> Content | None:
    """Reads COCO's JSON; returns None for other tables, and raises UsageError for other JSON."""
    if not path.lower().endswith(".json"):
        return None
    info = files_of(path).info(path)
    content = _parse_json(path, str(info and (info.size, info.identity)))
    if isinstance(content, list):
        return None
    _refuse_dataset(path, content)
    if not is_coco(content):
        raise UsageError(
            f"{FLAG} {path} is neither COCO's JSON (images, annotations, categories) nor a list "
            "of objects with image and class"
        )
    return content


def _refuse_dataset(path: str, content: object) -> None:
    if isinstance(content, dict) and content.get("format") == DATASET:
        raise UsageError(
            f"{FLAG} {parent(path)} is a dataset that in9 made; give the images it was made of"
        )


def images_of_rows(path: str, root: str, columns: Mapping[str, str]) -> Iterator[ListedImage]:
    """Reads the images of a table with a row for each box, in order of their first rows.

    Paths in the table are relative to the folder `root`; `columns` are those of `named_columns`.
    Raises UsageError if a row names no file, or contradicts another row of the same image.
    """
    images: dict[str, ListedImage] = {}
    names = _names(columns)
    for each in read_rows(path, FLAG):
        row = dataclasses.replace(each, names=names)
        image_path = _path(row, "image", root)
        image = images.setdefault(image_path, ListedImage(row, image_path))
        for column in _IMAGE_COLUMNS:
            value = row.text(column)
            if value and image.columns.setdefault(column, value) != value:
                raise row.error(
                    column, f"{value!r} differs from {image.row}, which is of the same image"
                )
        image.objects += ((row.text("class"), box) for box in _boxes(row) or [None])
    return iter(images.values())


def images_of_coco(path: str, root: str, content: Content) -> Iterator[ListedImage]:
    """Yields the images of COCO's JSON, in its order.

    Raises UsageError as `coco_objects` does, or if an image names no file.
    """
    for number, (entry, objects) in enumerate(coco_objects(path, content), 1):
        row = TableRow(path, number, entry, "image")
        segmentations = [each.segmentation for each in objects]
        yield ListedImage(
            row,
            _path(row, "file_name", root),
            columns={column: text for column in _IMAGE_COLUMNS if (text := row.text(column))},
            objects=[(each.name, each.box) for each in objects],
            segmentations=segmentations if segmentations and all(segmentations) else None,
        )


def _path(row: TableRow, column: str, root: str) -> str:
    text = row.text(column)
    if not text or "\0" in text:
        raise row.error(column, "names no file")
    try:
        return path_from(root, text)
    except UsageError as error:
        raise row.error(column, str(error)) from error


def path_from(root: str, text: str) -> str:
    """Returns the absolute path of a file that a table names."""
    return absolute(text if "://" in text else join(root, text))


def _boxes(row: TableRow) -> list[object]:
    """Returns the boxes of a row as they are, valid or not; empty if the row has no boxes."""
    boxes = row.value("boxes")
    if isinstance(boxes, str):
        try:
            boxes = load_json(boxes) if boxes.strip() else None
        except ValueError:
            return [boxes]
    if boxes:
        listed = list(boxes) if isinstance(boxes, list | tuple) else [boxes]
        # A single box may lack the list around it.
        return [listed] if all(isinstance(each, int | float) for each in listed) else listed
    corners = [row.text(name) for name in CORNERS]
    return [corners] if any(corners) else []
