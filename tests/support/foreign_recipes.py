"""Recipes with a right checksum that no export has written."""

import base64
import io
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.generate import recipe as recipes

Change = Callable[[Any], Any]


def parts_of(recipe: Path) -> tuple[pa.Table, Any]:
    """Returns the rows of a recipe, and the manifest in its metadata, parsed."""
    with pq.ParquetFile(recipe / "recipe.parquet") as file:
        packed = file.metadata.metadata[recipes.METADATA_KEY]
        content = json.loads(zlib.decompress(base64.b64decode(packed)))
        return file.read().replace_schema_metadata(), content


def sealed(table: pa.Table, content: Any, target: Path, **options: Any) -> Path:
    """Writes a recipe of these rows and this metadata; returns its folder."""
    buffer = io.BytesIO()
    options = {
        "use_dictionary": False,
        "store_schema": False,
        "write_statistics": False,
        "compression": "zstd",
        "compression_level": 19,
        **options,
    }
    with pq.ParquetWriter(buffer, table.schema, **options) as writer:
        writer.write_table(table, 2000)
        packed = base64.b64encode(zlib.compress(json.dumps(content).encode()))
        writer.add_key_value_metadata({recipes.METADATA_KEY: packed, b"seal": recipes.SEAL})
    target.mkdir(exist_ok=True)
    (target / "recipe.parquet").write_bytes(recipes.sealed(buffer.getvalue()))
    return target


def rejected_rows(table: pa.Table, number: int, path: str = "val/k{}.JPEG") -> pa.Table:
    """Returns rows of one rejected picture under many names, by the first row of a recipe."""
    drawn, (first,) = random.Random(0), table.slice(0, 1).to_pylist()
    nothing = dict.fromkeys(("detail", "width", "height", "native_box", "mask_over_box", "mask"))
    first |= {**nothing, "status": "missing_annotation", "layer_digest": None}
    return pa.Table.from_pylist(
        [
            {
                **first,
                "key": f"k{each}",
                "path": path.format(each),
                "source_digest": drawn.randbytes(16),
            }
            for each in range(number)
        ],
        table.schema,
    )


def changed(
    recipe: Path, target: Path, columns: dict[str, Change], metadata: Change | None = None
) -> Path:
    """Writes a recipe whose first accepted row, or metadata, is another, with a right checksum."""
    table, content = parts_of(recipe)
    rows = table.to_pylist()
    row = next(row for row in rows if row["status"] == "accepted")
    row |= {name: change(row[name]) for name, change in columns.items()}
    content = content if metadata is None else metadata(content)
    return sealed(pa.Table.from_pylist(rows, table.schema), content, target)


def with_library(name: str, version: str) -> Change:
    return lambda content: {**content, "libraries": {**content["libraries"], name: version}}


def with_flag(name: str, value: object) -> Change:
    return lambda content: {**content, "config": {**content["config"], name: value}}
