"""Records of source shards: one row for every image, accepted or not.

A record is a Parquet file beside the shard's tar of layers. It commits the tar: it is
written last, and its metadata holds the fingerprint of everything that went in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.shards import check_data_paths
from pipeline.storage.state_files import parse_json, parse_parquet, read_intact, read_table
from pipeline.storage.store import FileDigest, Store

ACCEPTED = "accepted"

_METADATA_KEY = b"in9"

BOX_TYPE = pa.list_(pa.int32())
"""Not a list of fixed size: pyarrow cannot read those back from Parquet where some are null."""

RECORD_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("wnid", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("source_md5", pa.string()),
        pa.field("native_box", BOX_TYPE),
        pa.field("box", BOX_TYPE),
        pa.field("mask_over_box", pa.float64()),
        pa.field("fg_fraction", pa.float64()),
        pa.field("group", pa.string()),
        pa.field("object", pa.int32()),
        pa.field("source_digest", pa.string()),
        pa.field("layer_digest", pa.string()),
        pa.field("image_offset", pa.int64()),
        pa.field("image_length", pa.int64()),
        pa.field("only_bg_t_offset", pa.int64()),
        pa.field("only_bg_t_length", pa.int64()),
        pa.field("mask_offset", pa.int64()),
        pa.field("mask_length", pa.int64()),
    ]
)
"""Columns of a record, null where an image has no such thing. `width`, `height` and `native_box`
(xmin, ymin, xmax, ymax, as the segmenter was given it) are in pixels of the picture whose MD5 is
`source_md5`; `box` is (x0, y0, x1, y1) in output pixels; offsets and lengths are bytes in the
shard's tar; `source_digest` identifies image, annotation and configuration. With `--objects each`
an image has a row for each of its boxes, whose number from 1 on is `object`; 0 of an image that was
rejected as a whole."""


def count_sources(rows: Iterable[Mapping[str, Any]]) -> int:
    """How many source images rows of records are of."""
    return sum(map(is_first, rows))


def is_first(row: Mapping[str, Any]) -> bool:
    """Whether a row is of no further object; each source image has one such row."""
    return (row["object"] or 0) <= 1


def source_key(row: Mapping[str, Any]) -> str:
    """Key of the source image that a row is of.

    >>> source_key({"key": "street_2", "object": 2})
    'street'
    >>> source_key({"key": "street_2", "object": None})
    'street_2'
    """
    key: str = row["key"]
    return key.rpartition("_")[0] if row["object"] else key


@dataclasses.dataclass(frozen=True)
class Record:
    """A record that was found, or has just been written.

    Attributes:
      fingerprint: of everything that went into its shard.
      path: where it lies now.
      files: digests of the shard's other files, which it commits, under their final paths; of its
        own as the last of them, where `Staging` gives a whole shard.
      where: final path of each of these files that is there, to where it lies now; empty if
        nobody has looked for them.
    """

    fingerprint: str
    path: str
    files: tuple[FileDigest, ...] = ()
    where: dict[str, str] = dataclasses.field(default_factory=dict)


class _Metadata(TypedDict):
    """What stands in a record's schema."""

    fingerprint: str
    files: tuple[FileDigest, ...]


def write_table(
    store: Store,
    path: str,
    table: pa.Table,
    fingerprint: str,
    files: Sequence[FileDigest] = (),
) -> FileDigest:
    """Writes a record.

    Args:
      store: the dataset folder.
      path: of the record.
      table: what it holds.
      fingerprint: of everything that went into its shard.
      files: of the shard, which it commits.
    """
    meta = {"fingerprint": fingerprint, "files": [dataclasses.asdict(file) for file in files]}
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(meta, sort_keys=True)})
    with store.create(path, durable=True) as file:
        pq.write_table(table, file, compression="zstd")
    return FileDigest(path, file.size, file.sha256, table.num_rows)


def read_metadata(store: Store, path: str) -> Record | None:
    """A record by its metadata alone; None if there is none, or a damaged one.

    Raises:
      OSError: it cannot be read.
    """

    def read() -> Record:
        schema = parse_parquet(store, path, pq.read_schema)
        about = parse_json((schema.metadata or {}).get(_METADATA_KEY, b""), _Metadata)
        check_data_paths(about["files"])
        return Record(about["fingerprint"], path, about["files"])

    return read_intact(store, path, read)


def read_rows(store: Store, path: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a record, as dictionaries; errors as `read_table`."""
    rows: list[dict[str, Any]] = read_table(store, path, columns).to_pylist()
    return rows


@dataclasses.dataclass(frozen=True)
class Staging:
    """Where new shards wait for Commit, and how a shard's files are found.

    Attributes:
      store: the dataset folder.
      folder: relative folder of the staged files, such as `.in9/staging/<fingerprint>`.
    """

    store: Store
    folder: str

    def staged(self, path: str) -> str:
        """Relative path of a file while it is staged."""
        return f"{self.folder}/{path}"

    def digest_of(self, current: str, final: str, samples: int | None) -> FileDigest:
        """Digest of a file that lies at `current`, under its final path. Raises OSError."""
        size = self.store.size(current)
        if size is None:
            raise FileNotFoundError(f"{current} has gone")
        return FileDigest(final, size, self.store.digest(current), samples)

    def find(self, record: str, fingerprint: str, *, need_files: bool = True) -> Record | None:
        """Finds a shard that is up to date, with all of its files.

        Args:
          record: final path of its record.
          fingerprint: what the record must hold.
          need_files: whether a shard whose files are missing does not count.

        Returns:
          Where it lies, None if it has to be made. Commit may have been killed half-way,
          so some files of a staged record may be in place already; files that a killed
          run staged without a record never count.
        """
        for path, places in ((self.staged(record), (self.staged, str)), (record, (str,))):
            about = read_metadata(self.store, path)
            if about is None or about.fingerprint != fingerprint:
                continue
            where: dict[str, str] = {}
            for place in places:
                missing = [file for file in about.files if file.path not in where]
                sizes = self.store.sizes_of([place(file.path) for file in missing])
                for file, size in zip(missing, sizes, strict=True):
                    if size == file.bytes:
                        where[file.path] = place(file.path)
            if len(where) == len(about.files) or not need_files:
                return dataclasses.replace(about, where=where)
        return None

    def with_record(self, found: Record, path: str, rows: int) -> Record:
        """A record that was found, of so many rows, as the last of its shard's files, under its
        final path. Raises OSError."""
        digest = self.digest_of(found.path, path, rows)
        where = {**found.where, path: found.path}
        return dataclasses.replace(found, files=(*found.files, digest), where=where)

    def write(
        self, path: str, table: pa.Table, fingerprint: str, files: Sequence[FileDigest] = ()
    ) -> Record:
        """Writes the record of a shard whose other files are staged, which makes it one that is
        found from then on; arguments as of `write_table`, under final paths."""
        staged = self.staged(path)
        digest = write_table(self.store, staged, table, fingerprint, files)
        files = (*files, dataclasses.replace(digest, path=path))
        return Record(fingerprint, staged, files, {f.path: self.staged(f.path) for f in files})
