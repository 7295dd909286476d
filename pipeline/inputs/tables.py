"""Texts and tables that a user wrote, and Parquet files as on the Hugging Face hub.

Texts and tables are read by line or by row, so they may be of any size. A table is CSV, Parquet,
JSON (a list of objects) or JSON lines. The hub's files have `image` (struct of bytes and path) and
`label`.
"""

import contextlib
import csv
import dataclasses
import functools
import io
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.inputs.input_format import FileFormat, SplitLayout
from pipeline.inputs.location import Location, open_parquet, refuse_twins, rows_of
from pipeline.inputs.source_images import SourceImage, is_wnid, stamp_of, wnid_of_label
from pipeline.storage.files import files_of, relative
from pipeline.storage.interface import read_ahead
from transforms.limits import load_json
from transforms.taxonomy import Taxonomy

MAX_ROW = 16 << 20
"""Largest number of characters in a line, or in a CSV row of several lines. The boxes and outlines
of a picture with thousands of objects take a few million characters."""


class TextLines(Iterator[str]):
    """Iterator over the lines of a text in UTF-8; UsageError if one is too long, or not UTF-8.

    Each line has its line end. `newline` and `errors` are those of `open`.
    """

    def __init__(
        self, path: str, flag: str, *, newline: str = "\n", errors: str = "strict"
    ) -> None:
        self._name = f"{flag} {path}".lstrip()
        file = cast(IO[bytes], files_of(path).open(path))
        self._file = io.TextIOWrapper(file, "utf-8-sig", errors, newline)
        self._number = 0
        self._row = 0

    def begin_row(self) -> None:
        """Starts a new row with the next line, so that the limit counts from there."""
        self._row = 0

    def close(self) -> None:
        self._file.close()

    def __next__(self) -> str:
        if self._file.closed:
            raise StopIteration
        try:
            line = self._file.readline(MAX_ROW + 1)
        except UnicodeDecodeError as error:
            raise UsageError(f"{self._name} is not text in UTF-8") from error
        if not line:
            self._file.close()
            raise StopIteration
        self._number += 1
        self._row += len(line)
        if self._row > MAX_ROW:
            raise UsageError(
                f"{self._name}, line {self._number}: a row of more than {MAX_ROW} characters"
            )
        return line


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Attributes:
      number: number of the line in a text file, or of the row in another table, counted from 1.
      values: values by column; in a CSV, all values are texts.
      noun: what the number counts, such as `line`.
      names: the file's names of columns that are asked for by another name; None if it has none.
    """

    path: str
    number: int
    values: Mapping[str, Any]
    noun: str = "row"
    names: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.noun} {self.number}"

    def value(self, column: str) -> Any:
        """Returns a value as the table has it, None for a missing value."""
        name = self.names.get(column, column)
        return None if name is None else self.values.get(name)

    def text(self, column: str) -> str:
        """Returns a value as text without blanks around it, "" for a missing value."""
        value = self.value(column)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return str(value).strip()

    def integer(self, column: str) -> int:
        """Returns a value as a whole number. Raises UsageError for anything else."""
        text = self.text(column)
        try:
            value = float(text)
            if value != int(value):
                raise ValueError
            return int(value)
        except (ValueError, OverflowError):
            raise self.error(column, f"{text[:40]!r} is not a whole number") from None

    def error(self, column: str, problem: str) -> UsageError:
        """Returns the error for a value that is wrong."""
        return UsageError(
            f"{self.path}, {self}, column {self.names.get(column, column)}: {problem}"
        )


def read_rows(path: str, flag: str) -> Iterator[TableRow]:
    """Yields the rows of a table; the suffix of the file tells the format.

    Raises UsageError if the file does not have the format that its suffix tells, or has no rows.
    """
    suffix = os.path.splitext(path)[1].lower()
    read = {".parquet": _parquet, ".json": _json, ".jsonl": _json_lines}.get(suffix, _csv)
    is_empty = True
    for row in read(path, flag):
        is_empty = False
        yield row
    if is_empty:
        raise UsageError(f"{flag} {path} has no rows")


def column_names(path: str, flag: str) -> tuple[str, ...]:
    """Returns the columns' names, from the schema or the first row; raises as `read_rows` does."""
    if path.lower().endswith(".parquet"):
        with open_parquet(path, flag) as file:
            return tuple(file.schema_arrow.names)
    return tuple(next(read_rows(path, flag)).values)


def _csv(path: str, flag: str) -> Iterator[TableRow]:
    with contextlib.closing(TextLines(path, flag, newline="")) as text:
        lines = csv.reader(text, strict=True)
        try:
            header = [name.strip() for name in next(lines, [])]
            refuse_twins(header, path, flag)
            for cells in lines:
                text.begin_row()
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise UsageError(
                        f"{path}, line {lines.line_num}: {len(cells)} values for {len(header)} "
                        "columns"
                    )
                yield TableRow(path, lines.line_num, dict(zip(header, cells, strict=True)), "line")
        except csv.Error as error:
            raise UsageError(f"{path}, line {lines.line_num}: {error}") from error


def _parquet(path: str, flag: str) -> Iterator[TableRow]:
    with open_parquet(path, flag) as file:
        for number, (_, _, values) in enumerate(rows_of(file, path), 1):
            yield TableRow(path, number, values)


def read_json(path: str, flag: str) -> Any:
    """Reads a JSON file. Raises UsageError if it is not JSON, OSError if it cannot be read."""
    try:
        return load_json(files_of(path).read(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag} {path} is not text in UTF-8") from error
    except ValueError as error:
        raise UsageError(f"{flag} {path} is not JSON: {error}") from error


def _json(path: str, flag: str) -> Iterator[TableRow]:
    content = read_json(path, flag)
    if not isinstance(content, list):
        raise UsageError(f"{flag} {path} is not a list of objects")
    for number, values in enumerate(content, 1):
        yield _object(path, number, values)


def _json_lines(path: str, flag: str) -> Iterator[TableRow]:
    with contextlib.closing(TextLines(path, flag)) as text:
        for number, line in enumerate(text, 1):
            text.begin_row()
            if line.strip():
                try:
                    values = load_json(line)
                except ValueError as error:
                    raise UsageError(f"{path}, line {number}: not JSON: {error}") from error
                yield _object(path, number, values, "line")


def _object(path: str, number: int, values: Any, noun: str = "row") -> TableRow:
    if not isinstance(values, dict):
        raise UsageError(f"{path}, {noun} {number}: not an object of column names and values")
    return TableRow(path, number, {str(name): value for name, value in values.items()}, noun)


_CLASS_AT_END = re.compile(r"(?<=.)_n\d{8}$")
"""Ends of file names on the hub, such as ILSVRC2012_val_00000001_n01751748."""


class HubParquet(FileFormat):
    """Parquet files that hold the images in a column."""

    kind = "parquet"
    suffix = ".parquet"

    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage]:
        """Yields the images of all rows, without reading any.

        The class comes from the column `wnid`, or else from `label`: a class number or, if the
        schema names the labels by WordNet ids, an index into these. The key is the name in
        `image.path`, without its suffix and without a class at its end.
        """
        list_file = functools.partial(_list_file, root=layout.root, taxonomy=taxonomy)
        for _, images in read_ahead(list_file, layout.files):
            yield from images


def holds_pictures(path: str, column: str = "image") -> bool:
    """Returns whether a Parquet column holds pictures, not paths; UsageError if not Parquet."""
    with open_parquet(path) as file:
        schema = file.schema_arrow
        return column not in schema.names or not _is_text(schema.field(column).type)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _list_file(path: str, root: str, taxonomy: Taxonomy) -> list[SourceImage]:
    file_name, stamp = relative(path, root), stamp_of(path)
    images = []
    with open_parquet(path) as file:
        schema = file.schema_arrow
        is_image = "image" in schema.names and pa.types.is_struct(schema.field("image").type)
        fields = {f.name: f.type for f in schema.field("image").type} if is_image else {}
        if (
            not {"bytes", "path"} <= fields.keys()
            or not _is_text(fields["path"])
            or not {"label", "wnid"} & set(schema.names)
        ):
            raise UsageError(
                f"{path} does not hold ImageNet: expected the columns image (bytes, path) and "
                f"label (or, in an input table, image as text); it has {', '.join(schema.names)}"
            )
        names = _label_names(schema, path, taxonomy)
        columns = ["image.path", *({"label", "wnid"} & set(schema.names))]
        for group, number, row in rows_of(file, path, columns):
            name = f"{file_name}/{group}/{number}"
            label = row.get("wnid") or row.get("label", -1)
            if names and isinstance(label, int) and label >= 0:
                if label >= len(names):
                    raise UsageError(f"{name} is of class {label}, of {len(names)} in {path}")
                label = names[label]
            images.append(
                SourceImage(
                    key=_key(row["image"], name),
                    location=Location(path, row=(group, number, "image.bytes")),
                    name=name,
                    wnid=wnid_of_label(label, taxonomy, name),
                    stamp=stamp,
                )
            )
    return images


def _key(image: dict[str, str | None] | None, name: str) -> str:
    """Returns the key of a row; without a file name its position, as no box can be found then."""
    file = ((image or {}).get("path") or "").replace("\\", "/").rpartition("/")[2]
    stem = file.rpartition(".")[0] or file
    return _CLASS_AT_END.sub("", stem) or re.sub(r"[./\\]", "-", name)


def _label_names(schema: pa.Schema, path: str, taxonomy: Taxonomy) -> list[str]:
    """Returns the class ids that the schema gives the labels; empty if labels are class numbers."""
    try:
        metadata = load_json((schema.metadata or {})[b"huggingface"])
        names = list(metadata["info"]["features"]["label"]["names"])
    except (ValueError, LookupError, TypeError):
        return []  # Other metadata does not name labels.
    if all(is_wnid(str(name)) or str(name) in taxonomy.index_of for name in names):
        return list(names)
    if len(names) != len(taxonomy.wnids):
        raise UsageError(
            f"{path} has labels of {len(names)} classes that are no WordNet ids: not ImageNet's "
            f"{len(taxonomy.wnids)}. Add a column wnid that tells the class of each image"
        )
    return []
