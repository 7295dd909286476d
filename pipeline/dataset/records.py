"""Shards (hash buckets of the key, and the paths of their files), and their records.

A record is a table with a row for every image or object, accepted or not. Source and output shards
use the same hash, and the number of output shards divides the number of source shards. So an output
shard is a union of whole source shards.

A source shard's record is a Parquet file beside the tar of layers, which it marks as complete,
because it is written last. Its metadata holds the fingerprint of all that the shard was made from.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Self, TypedDict

import pyarrow as pa

from pipeline.storage.state_files import (
    convert,
    parquet_reader,
    parquet_writer,
    parse_json,
    parse_parquet,
    read_intact,
    read_table,
    warn_damaged,
)
from pipeline.storage.store import WORK_FOLDER, FileDigest, Store
from transforms.hashing import fingerprint, keyed_hash

IMAGES_PER_SOURCE_SHARD = 32
MAX_SOURCE_SHARDS = 100_000
DATA_FOLDERS = ("index", "layers", "parquet", "webdataset", "backgrounds")
"""Folders that hold the files of shards and the table of scenes, and nothing else."""
CARD_FILES = ("README.md", "classes.txt", "croissant.json")
"""Files in the dataset folder itself that the manifest lists. They describe the dataset."""
_BELOW_DATA_FOLDERS = re.compile(rf"(?:{'|'.join(DATA_FOLDERS)})(?:/(?!\.)[^/\\\x00-\x1f]+)+")


def bucket_hash(key: str) -> int:
    """Returns the hash that decides a key's shard and its position there, in [0, 2**64)."""
    return keyed_hash(0, "shard", key)


def check_data_paths(files: Iterable[FileDigest]) -> None:
    """Raises ValueError if a path that was read from a file cannot be that of a dataset's file."""
    for file in files:
        if file.path not in CARD_FILES and not _BELOW_DATA_FOLDERS.fullmatch(file.path):
            raise ValueError(f"{file.path!r} is not the path of a dataset's file")


@dataclasses.dataclass(frozen=True)
class ShardCounts:
    """Numbers of source and output shards of one split; `output` divides `source`.

    Raises ValueError if `output` does not divide `source`, or there are too many shards.
    """

    source: int
    output: int

    def __post_init__(self) -> None:
        if not 1 <= self.output <= self.source <= MAX_SOURCE_SHARDS or self.source % self.output:
            raise ValueError(
                f"{self.source} source shards and {self.output} output shards: both must be 1 to "
                f"{MAX_SOURCE_SHARDS}, and the first must be a multiple of the second"
            )

    @classmethod
    def for_images(cls, images: int, images_per_shard: int) -> Self:
        """Chooses the counts from the number of images alone, never from the number of workers."""
        output = max(1, min(round(images / images_per_shard), MAX_SOURCE_SHARDS))
        multiple = round(images / IMAGES_PER_SOURCE_SHARD / output)
        return cls(
            source=output * max(1, min(multiple, MAX_SOURCE_SHARDS // output)), output=output
        )

    def source_shard(self, key: str) -> int:
        return bucket_hash(key) % self.source

    def sources_of(self, output_shard: int) -> range:
        """Returns the source shards that make up an output shard."""
        return range(output_shard, self.source, self.output)


def layer_tar(split: str, shard: int) -> str:
    return f"layers/{split}-{shard:05d}.tar"


def layer_record(split: str, shard: int) -> str:
    """Returns the path of a source shard's record, which commits the tar."""
    return f"layers/{split}-{shard:05d}.parquet"


def index_file(split: str, shard: int, count: int) -> str:
    """Returns the path of an output shard's index, which is its record and commits its files."""
    return f"index/{split}-{shard:05d}-of-{count:05d}.parquet"


ACCEPTED = "accepted"

_METADATA_KEY = b"in9"

Row = dict[str, Any]
"""A row of a record, or of an index: values by column."""

BOX_TYPE = pa.list_(pa.int32())
"""A list of variable size, because pyarrow cannot read lists of fixed size back from Parquet if
some of them are null."""

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
"""Columns of a record, null where an image has no such value. `native_box` is (xmin, ymin, xmax,
ymax) as passed to the segmenter; it, `width` and `height` are in pixels of the picture with MD5
`source_md5`. `box` is (x0, y0, x1, y1) in output pixels. `mask_over_box` is the number of
foreground pixels divided by the number of pixels of the box. `group` names the group of the image,
such as a scene or a session. Offsets and lengths are bytes in the shard's tar. `source_digest`
identifies everything that the image's layer depends on, such as picture, annotation, mask and
configuration; `layer_digest` identifies the layer's pixels. With `--objects each` an image has a
row for each of its boxes, and `object` is the box's number, which starts at 1; it is 0 if the image
was rejected as a whole."""


@dataclasses.dataclass(frozen=True)
class ImageRow:
    """A row of a source shard's record. Its fields are the columns of `RECORD_SCHEMA`."""

    key: str
    path: str
    status: str
    wnid: str | None = None
    label: int | None = None
    detail: str | None = None
    width: int | None = None
    height: int | None = None
    source_md5: str | None = None
    native_box: list[int] | None = None
    box: list[int] | None = None
    mask_over_box: float | None = None
    fg_fraction: float | None = None
    group: str | None = None
    object: int | None = None
    source_digest: str | None = None
    layer_digest: str | None = None
    image_offset: int | None = None
    image_length: int | None = None
    only_bg_t_offset: int | None = None
    only_bg_t_length: int | None = None
    mask_offset: int | None = None
    mask_length: int | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the first row of its source image; each image has one first row."""
        return (self.object or 0) <= 1

    @property
    def source_key(self) -> str:
        """Key of the source image.

        >>> ImageRow("street_2", "", ACCEPTED, object=2).source_key
        'street'
        >>> ImageRow("street_2", "", ACCEPTED).source_key
        'street_2'
        """
        return self.key.rpartition("_")[0] if self.object else self.key

    @property
    def rank(self) -> tuple[int, str]:
        """Where the row stands among others, in a record and in an index."""
        return bucket_hash(self.key), self.key


def count_sources(rows: Iterable[ImageRow]) -> int:
    return sum(row.is_first for row in rows)


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known about a record that was found, or has just been written.

    Attributes:
      fingerprint: fingerprint of everything that the shard was made from.
      files: digests of the shard's other files, under their final paths. After
        `Staging.with_record` or `Staging.write` they include the record's own digest.
      locations: final path -> current path of existing files; empty if they were not looked for.
    """

    fingerprint: str
    path: str
    files: tuple[FileDigest, ...] = ()
    locations: dict[str, str] = dataclasses.field(default_factory=dict)


class _Metadata(TypedDict):
    """Metadata in a record's schema."""

    fingerprint: str
    files: tuple[FileDigest, ...]


def write_table(
    store: Store,
    path: str,
    table: pa.Table,
    fingerprint: str,
    files: Sequence[FileDigest] = (),
) -> FileDigest:
    """Writes a record, which marks the shard's other files as complete."""
    meta = {"fingerprint": fingerprint, "files": [dataclasses.asdict(file) for file in files]}
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(meta, sort_keys=True)})
    with (
        store.create(path, durable=True) as file,
        parquet_writer(file, table.schema, compression="zstd") as writer,
    ):
        writer.write_table(table)
    return FileDigest(path, file.size, file.sha256, table.num_rows)


def read_small(source: object, columns: list[str] | None = None) -> pa.Table:
    """Reads a small Parquet file for `parse_parquet`, in half the time that `read_table` takes."""
    with parquet_reader(source) as file:
        return file.read(columns, use_threads=False)


def read_metadata(store: Store, path: str) -> Record | None:
    """Reads the metadata of a record; returns None if the record is missing or damaged.

    A single damaged row is enough, because whoever finds the metadata leaves work undone.
    """

    def read() -> Record:
        schema = parse_parquet(store, path, read_small).schema
        metadata = parse_json((schema.metadata or {}).get(_METADATA_KEY, b""), _Metadata)
        check_data_paths(metadata["files"])
        return Record(metadata["fingerprint"], path, metadata["files"])

    return read_intact(store, path, read)


def read_rows(store: Store, path: str, columns: list[str] | None = None) -> list[Row]:
    """Reads the rows of a record as dictionaries; raises the errors of `read_table`."""
    return list(read_table(store, path, columns).to_pylist())


def chosen_images(rows: Iterable[Row]) -> str:
    """Identifies the selected images of an index, in order, and what their samples say of them."""
    return fingerprint(
        [
            [row.get(n) for n in ("key", "wnid", "label", "source_md5", "box", "fg_fraction")]
            for row in rows
            if row["selected"]
        ]
    )


def read_image_rows(store: Store, path: str) -> list[ImageRow]:
    """Reads the rows of a source shard's record; raises the errors of `read_table`."""
    return parse_parquet(
        store, path, lambda source: convert(read_small(source).to_pylist(), list[ImageRow])
    )


STAGING = f"{WORK_FOLDER}/staging"


@dataclasses.dataclass(frozen=True)
class Staging:
    """The folder in which new shards wait for Commit, such as `.in9/staging/<fingerprint>`."""

    store: Store
    folder: str

    def staged(self, path: str) -> str:
        """Returns the relative path of a file while it is staged."""
        return f"{self.folder}/{path}"

    def find(self, record: str, fingerprint: str, *, need_files: bool = True) -> Record | None:
        """Finds a shard that is up to date, with all of its files and their locations.

        Because Commit may have been killed half-way, some files of a staged record may be in place
        already. Files that a killed run staged without a record never count, nor do files that a
        power cut left with other content.
        """
        for path, path_functions in ((self.staged(record), (self.staged, str)), (record, (str,))):
            candidate = read_metadata(self.store, path)
            if candidate is None or candidate.fingerprint != fingerprint:
                continue
            locations: dict[str, str] = {}
            for path_of in path_functions:
                missing = [file for file in candidate.files if file.path not in locations]
                sizes = self.store.sizes_of([path_of(file.path) for file in missing])
                for file, size in zip(missing, sizes, strict=True):
                    if size == file.bytes and self._is_intact(path_of(file.path), file):
                        locations[file.path] = path_of(file.path)
            if len(locations) == len(candidate.files) or not need_files:
                return dataclasses.replace(candidate, locations=locations)
        return None

    def _is_intact(self, path: str, file: FileDigest) -> bool:
        """Returns whether a file has its content, if it is staged on this machine.

        Any other file counts as intact: only records are written to disk at once, and in object
        storage files are whole or absent.
        """
        if self.store.is_remote or not path.startswith(self.folder):
            return True
        if self.store.digest(path) == file.sha256:
            return True
        warn_damaged(self.store.path(path), "the content has changed")
        return False

    def with_record(self, record: Record, path: str, num_rows: int) -> Record:
        """Returns the record with its own digest, under its final path; may raise OSError."""
        size = self.store.size(record.path)
        if size is None:
            raise FileNotFoundError(f"{record.path} is gone")
        digest = FileDigest(path, size, self.store.digest(record.path), num_rows)
        locations = {**record.locations, path: record.path}
        return dataclasses.replace(record, files=(*record.files, digest), locations=locations)

    def write(
        self, path: str, table: pa.Table, fingerprint: str, files: Sequence[FileDigest] = ()
    ) -> Record:
        """Writes the record of a shard whose other files are staged, by final paths, for `find`."""
        staged = self.staged(path)
        digest = write_table(self.store, staged, table, fingerprint, files)
        files = (*files, dataclasses.replace(digest, path=path))
        return Record(fingerprint, staged, files, {f.path: self.staged(f.path) for f in files})
