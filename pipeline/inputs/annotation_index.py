"""Finds the annotation of an image: among XML files in a folder or an archive, or in the table of
the Kaggle download."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import UsageError
from pipeline.inputs.archives import ARCHIVES, stream
from pipeline.inputs.image_folder import files_in
from pipeline.inputs.location import read_location, text_location
from pipeline.inputs.source_images import FileIndex, KeyedFile, wnid_of_folder
from pipeline.inputs.table_rows import TextLines
from transforms.annotations import (
    Annotation,
    AnnotationError,
    Box,
    parse_annotation,
    write_annotation,
)

if TYPE_CHECKING:
    from _csv import Reader

T = TypeVar("T")

_COLUMNS = ["ImageId", "PredictionString"]


def index_annotations(path: str | None) -> FileIndex:
    """Indexes the annotations in a folder, an archive or a table.

    Args:
      path: absolute path of the folder, archive or table; None for an empty index.

    Raises:
      UsageError: the archive or the table is not valid, or is refused.
      OSError: the path cannot be read.
    """
    if path is None:
        return FileIndex(())
    if path.lower().endswith(ARCHIVES):
        return FileIndex(_in_archive(path))
    if path.lower().endswith(".csv"):
        return FileIndex(_in_table(path))
    return FileIndex(files_in(path, (".xml",)))


def annotation_of(parsed: Annotation | AnnotationError) -> str:
    """Returns the location of an annotation that has no file of its own."""
    return text_location(write_annotation(parsed))


def annotation_by(parse: Callable[[T], Annotation], content: T) -> str:
    """Same as `annotation_of`, for what a function parses, or for its AnnotationError."""
    try:
        return annotation_of(parse(content))
    except AnnotationError as error:
        return annotation_of(error)


def annotated_wnid(annotation: str | None) -> str:
    """Returns the class that an annotation names, given the annotation's location; "" if there is
    no annotation, if it cannot be parsed, or if it names no class."""
    if annotation is None:
        return ""
    try:
        return parse_annotation(read_location(annotation)).wnid or ""
    except AnnotationError:
        return ""


def _in_archive(path: str) -> Iterator[KeyedFile]:
    """Yields annotations that are parsed already, because they could not be read later from a
    compressed archive."""
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
    """Reads `LOC_<split>_solution.csv`, where each box of an image takes five words: its class and
    its four corner coordinates."""
    text = TextLines(path, "", errors="replace")
    rows = csv.reader(text)
    try:
        for annotation in _boxes_of(rows, path):
            text.begin_row()
            yield annotation
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: {error}") from error


def _boxes_of(rows: Reader, path: str) -> Iterator[KeyedFile]:
    if next(rows, None) != _COLUMNS:
        raise UsageError(
            f"{path} is not a table of boxes: its first line is not {','.join(_COLUMNS)}"
        )
    for row in filter(None, rows):
        try:
            key, text = row
            words = text.split()
            boxes = tuple(
                Box(*map(int, words[start + 1 : start + 5])) for start in range(0, len(words), 5)
            )
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{path}, line {rows.line_num}: expected a name and, for each box, a WordNet id "
                "and four numbers"
            ) from error
        parsed = Annotation(None, None, boxes, words[0] if words else None)
        yield KeyedFile("", key, annotation_of(parsed))
