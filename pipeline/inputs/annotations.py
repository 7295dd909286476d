"""Annotations of many images: XML files in a folder or an archive, Kaggle's table, COCO's JSON."""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard, TypeVar

from pipeline.errors import UsageError
from pipeline.inputs.archives import ARCHIVES, stream
from pipeline.inputs.imagenet import files_in
from pipeline.inputs.location import Location, read_location
from pipeline.inputs.source_images import FileIndex, KeyedFile, wnid_of_folder
from pipeline.inputs.tables import TextLines
from transforms.annotations import (
    Annotation,
    AnnotationError,
    Box,
    parse_annotation,
    write_annotation,
)

T = TypeVar("T")

_COLUMNS = ["ImageId", "PredictionString"]


def index_annotations(path: str | None) -> FileIndex:
    """Indexes the annotations in a folder, an archive or a table; None stands for an empty index.

    Raises UsageError if the archive or the table is not valid, or is refused.
    """
    if path is None:
        return FileIndex(())
    if path.lower().endswith(ARCHIVES):
        return FileIndex(_in_archive(path))
    if path.lower().endswith(".csv"):
        return FileIndex(_in_table(path))
    return FileIndex(files_in(path, (".xml",)))


def annotation_of(parsed: Annotation | AnnotationError) -> Location:
    """Returns the location of an annotation that has no file of its own."""
    return Location(text=write_annotation(parsed))


def annotation_by(parse: Callable[[T], Annotation], content: T) -> Location:
    """Returns `annotation_of` what a function parses, or of its AnnotationError."""
    try:
        return annotation_of(parse(content))
    except AnnotationError as error:
        return annotation_of(error)


def annotated_wnid(annotation: Location | None) -> str:
    """Returns the class that an annotation names; "" if there is none, or it cannot be parsed."""
    if annotation is None:
        return ""
    try:
        return parse_annotation(read_location(annotation)).wnid or ""
    except AnnotationError:
        return ""


def _in_archive(path: str) -> Iterator[KeyedFile]:
    """Yields annotations, parsed because they cannot be read from a compressed archive later."""
    is_empty = True
    for name, data in stream(path):
        if not name.lower().endswith(".xml"):
            continue
        is_empty = False
        key = name.rpartition("/")[2][: -len(".xml")]
        yield KeyedFile(wnid_of_folder(name), key, annotation_by(parse_annotation, data))
    if is_empty:
        raise UsageError(f"{path} holds no annotations: expected .xml files in it")


def _in_table(path: str) -> Iterator[KeyedFile]:
    """Reads `LOC_<split>_solution.csv`: five words for each box, its class and four coordinates."""
    text = TextLines(path, "", errors="replace")
    rows = csv.reader(text)
    try:
        if next(rows, None) != _COLUMNS:
            raise UsageError(
                f"{path} is not a table of boxes: its first line is not {','.join(_COLUMNS)}"
            )
        for row in filter(None, rows):
            yield _boxes_of(row, f"{path}, line {rows.line_num}")
            text.begin_row()
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: {error}") from error


def _boxes_of(row: list[str], place: str) -> KeyedFile:
    """Returns the boxes in a row; raises UsageError, which names the place, for anything else."""
    try:
        key, text = row
        words = text.split()
        boxes = tuple(
            Box(*map(int, words[start + 1 : start + 5])) for start in range(0, len(words), 5)
        )
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{place}: expected a name and, for each box, a WordNet id and four numbers"
        ) from error
    parsed = Annotation(None, None, boxes, words[0] if words else None)
    return KeyedFile("", key, annotation_of(parsed))


Content = dict[str, list[Any]]
"""The content of COCO's JSON."""
_LISTS = ("images", "annotations", "categories")


@dataclasses.dataclass(frozen=True)
class CocoObject:
    """An object of an image.

    Attributes:
      box: corners (xmin, ymin, xmax, ymax) in pixels; the original value if it is not four numbers.
      segmentation: run lengths or polygons; None if the object has neither.
    """

    name: str
    box: object
    segmentation: object


def is_coco(content: object) -> TypeGuard[Content]:
    """Returns whether the content of a JSON file has COCO's lists."""
    return isinstance(content, dict) and all(isinstance(content.get(p), list) for p in _LISTS)


def coco_objects(path: str, content: Content) -> Iterator[tuple[dict[str, Any], list[CocoObject]]]:
    """Yields (entry, objects) for each image, in the order of the file.

    Raises UsageError if an image, a category or an annotation lacks an id or a name, or refers to
    an id that the file does not have; or two images, or two categories, have the same id.
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
    """Returns a mask as text, which `transforms.masks` decodes; height and width are in pixels."""
    mask = {"height": height, "width": width, "segmentations": segmentations}
    return json.dumps(mask, sort_keys=True, separators=(",", ":"))


def _value(path: str, entry: object, kind: str, name: str) -> int | str:
    value = entry.get(name) if isinstance(entry, dict) else None
    if value is None or not isinstance(value, int | str):
        raise UsageError(f"{path}: an entry of {kind} has no {name}: {str(entry)[:60]}")
    return value


def _corners(box: Any) -> object:
    """Returns the corners of (x, y, width, height), or what is not four numbers unchanged."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        return box
    return (x, y, x + width, y + height)
