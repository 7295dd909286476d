"""Parquet files as on the Hugging Face hub: `image` (struct of bytes and path) and `label`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.inputs.checksums import stamp_of
from pipeline.inputs.input_format import FileFormat, SplitLayout
from pipeline.inputs.location import open_parquet, row_location, rows_of
from pipeline.inputs.source_images import SourceImage, is_wnid, wnid_of_label
from pipeline.storage.files import relative
from pipeline.storage.parallel import read_ahead
from transforms.limits import load_json
from transforms.taxonomy import Taxonomy

_CLASS_AT_END = re.compile(r"(?<=.)_n\d{8}$")
"""File names on the hub are ImageNet's file names with the class appended, such as
ILSVRC2012_val_00000001_n01751748."""


class HubParquet(FileFormat):
    """Parquet files that hold the images in a column."""

    kind = "parquet"
    suffix = ".parquet"

    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage]:
        """Yields the images of all rows, without reading any.

        The class comes from the column `wnid`, or else from `label`. A label is a class number or,
        if the schema names the labels by WordNet ids, an index into these names. The key is the
        name in `image.path`, without its suffix and without a class at its end.
        """
        list_file = functools.partial(_list_file, root=layout.root, taxonomy=taxonomy)
        for _, images in read_ahead(list_file, layout.files):
            yield from images


def holds_pictures(path: str) -> bool:
    """Returns whether the column `image` of a Parquet file holds pictures rather than paths. Raises
    UsageError if the file is not Parquet."""
    with open_parquet(path) as file:
        schema = file.schema_arrow
        return "image" not in schema.names or not _is_text(schema.field("image").type)


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
        fields = [field.name for field in schema.field("image").type] if is_image else []
        if not {"bytes", "path"} <= set(fields) or not {"label", "wnid"} & set(schema.names):
            raise UsageError(
                f"{path} does not hold ImageNet: expected the columns image (bytes, path) and "
                f"label (or, in a manifest, image as text); it has {', '.join(schema.names)}"
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
                    path=row_location(path, group, number, "image.bytes"),
                    name=name,
                    wnid=wnid_of_label(label, taxonomy, name),
                    stamp=stamp,
                )
            )
    return images


def _key(image: dict[str, str | None] | None, name: str) -> str:
    """Returns the key of a row. If the row has no file name, the key is the row's position, because
    no box can be found for such a row anyway."""
    file = ((image or {}).get("path") or "").replace("\\", "/").rpartition("/")[2]
    stem = file.rpartition(".")[0] or file
    return _CLASS_AT_END.sub("", stem) or re.sub(r"[./\\]", "-", name)


def _label_names(schema: pa.Schema, path: str, taxonomy: Taxonomy) -> list[str]:
    """Returns the class ids by which the schema names the labels; empty if labels are class
    numbers."""
    try:
        metadata = load_json((schema.metadata or {})[b"huggingface"])
        names = list(metadata["info"]["features"]["label"]["names"])
    except (ValueError, LookupError, TypeError):
        return []  # Other metadata does not name labels.
    if all(is_wnid(str(name)) or taxonomy.holds(str(name)) for name in names):
        return list(names)
    if len(names) != len(taxonomy.wnids):
        raise UsageError(
            f"{path} has labels of {len(names)} classes that are no WordNet ids: not ImageNet's "
            f"{len(taxonomy.wnids)}. Add a column wnid that tells the class of each image"
        )
    return []
