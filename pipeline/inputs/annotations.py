"""Annotations of a split, by image: XML files in a folder or an archive, or the table of the
Kaggle download."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.inputs.archives import ARCHIVES, stream
from pipeline.inputs.folder import files_in
from pipeline.inputs.found import FoundAnnotation, wnid_of_folder
from pipeline.inputs.place import read_place, text_place
from pipeline.storage.files import files_of
from transforms.annotations import (
    Annotation,
    AnnotationError,
    Box,
    parse_annotation,
    write_annotation,
)

if TYPE_CHECKING:
    from _csv import Reader

_COLUMNS = ["ImageId", "PredictionString"]


class AnnotationIndex:
    """Annotations by the folder and the key of their image.

    Args:
      entries: (folder, "" if it lies in none; key; annotation).
    """

    def __init__(self, entries: Iterable[tuple[str, str, FoundAnnotation]]) -> None:
        self._by_key: dict[str, tuple[tuple[str, FoundAnnotation], ...]] = {}
        for folder, key, annotation in entries:
            self._by_key[key] = (*self._by_key.get(key, ()), (folder, annotation))

    def find(self, folder: str, key: str) -> FoundAnnotation | None:
        """The annotation of an image, given the folder it lies in, "" for none.

        One that lies in no folder, or the only one of its key, serves an image in any.
        """
        of_key = dict(self._by_key.get(key, ()))
        only = next(iter(of_key.values())) if len(of_key) == 1 else None
        return of_key.get(folder) or of_key.get("") or only


def index_annotations(path: str | None) -> AnnotationIndex:
    """The annotations in a folder, an archive, or a table.

    Args:
      path: absolute; None if there are none.

    Raises:
      UsageError: an archive or a table that is no such thing, or is refused.
      OSError: it cannot be read.
    """
    if path is None:
        return AnnotationIndex(())
    if path.lower().endswith(ARCHIVES):
        return AnnotationIndex(_in_archive(path))
    if path.lower().endswith(".csv"):
        return AnnotationIndex(_in_table(path))
    return AnnotationIndex(_in_folder(path))


def annotation_of(parsed: Annotation | AnnotationError) -> FoundAnnotation:
    """An annotation that lies in no file of its own."""
    return FoundAnnotation(text_place(write_annotation(parsed)))


def annotation_of_xml(data: bytes) -> FoundAnnotation:
    """What an XML file says, as an annotation that lies in no file of its own."""
    try:
        return annotation_of(parse_annotation(data))
    except AnnotationError as error:
        return annotation_of(error)


def annotated_wnid(annotation: FoundAnnotation | None) -> str:
    """Class that an annotation names, "" if there is no readable one."""
    if annotation is None:
        return ""
    try:
        return parse_annotation(read_place(annotation.place)).wnid or ""
    except AnnotationError:
        return ""


def _in_folder(path: str) -> Iterator[tuple[str, str, FoundAnnotation]]:
    for file in files_in(path, (".xml",)):
        yield file.folder, file.key, FoundAnnotation(file.path, file.md5)


def _in_archive(path: str) -> Iterator[tuple[str, str, FoundAnnotation]]:
    """Kept as what they say: a compressed archive cannot be read in places."""
    found = False
    for name, data in stream(path):
        if not name.lower().endswith(".xml"):
            continue
        found = True
        key = name.rpartition("/")[2][: -len(".xml")]
        yield wnid_of_folder(name), key, annotation_of_xml(data)
    if not found:
        raise UsageError(f"{path} holds no annotations: expected .xml files in it")


def _in_table(path: str) -> Iterator[tuple[str, str, FoundAnnotation]]:
    """`LOC_val_solution.csv`: for each image, five words a box, the first its class."""
    rows = csv.reader(io.StringIO(files_of(path).read(path).decode("utf-8-sig", "replace")))
    try:
        yield from _boxes_of(rows, path)
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: {error}") from error


def _boxes_of(rows: Reader, path: str) -> Iterator[tuple[str, str, FoundAnnotation]]:
    if next(rows, None) != _COLUMNS:
        raise UsageError(f"{path} is no table of boxes: its first line is not {','.join(_COLUMNS)}")
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
        yield "", key, annotation_of(parsed)
