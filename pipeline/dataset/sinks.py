"""Files of samples and of layers.

A sink writes one variant's output shard as a Parquet file or a WebDataset tar, with the same
fields. The file becomes visible, complete, when the `with` block of `open` ends, or later with a
store from `Store.together`. Tars, also those of layers, have reproducible bytes and known offsets.
"""

import abc
import contextlib
import dataclasses
import json
import mmap
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Self

import pyarrow as pa

from pipeline.dataset.records import BOX_TYPE, Row, Staging
from pipeline.errors import JobError, shown_bytes
from pipeline.storage.state_files import parquet_writer
from pipeline.storage.store import FileDigest, HashingFile, Store
from transforms.codec import (
    UndecodableError,
    check_png,
    decode_mask,
    decode_png,
    encode_mask,
    encode_png,
)
from transforms.geometry import OutputBox
from transforms.layers import Layer
from transforms.variants import VariantName

ROW_GROUP_BYTES = 4 << 20
"""Bytes of pictures that a Parquet sink collects before it writes them as a row group."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One picture of one variant.

    Attributes:
      key: key of the foreground image.
      image: bytes of the encoded picture.
      suffix: `jpg` or `png`.
      fields: values of the columns in `SAMPLE_FIELDS`, by name.
    """

    key: str
    image: bytes
    suffix: str
    fields: dict[str, Any]


SAMPLE_FIELDS = [
    pa.field("label", pa.int64()),
    pa.field("wnid", pa.string()),
    pa.field("imagenet_index", pa.int32()),
    pa.field("fg_key", pa.string()),
    pa.field("bg_key", pa.string()),
    pa.field("bg_label", pa.int64()),
    pa.field("bg_wnid", pa.string()),
    pa.field("box", BOX_TYPE),
    pa.field("fg_fraction", pa.float64()),
]
"""Columns of a sample other than key and image, null where a picture has no such value. `box` is
(x0, y0, x1, y1) in output pixels, half-open. `fg_fraction` is in [0, 1]. All columns are nullable,
because Hugging Face ignores the features in a schema if any of its columns is not nullable."""


def sample_schema(label_names: Sequence[str]) -> pa.Schema:
    """Returns the Parquet schema; its metadata has Hugging Face's Image and ClassLabel features."""
    features: dict[str, Any] = {
        "key": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        **{f.name: {"dtype": str(f.type), "_type": "Value"} for f in SAMPLE_FIELDS},
        "label": {"names": list(label_names), "_type": "ClassLabel"},
        "box": {"feature": {"dtype": "int32", "_type": "Value"}, "length": -1, "_type": "List"},
        "fg_fraction": {"dtype": "float64", "_type": "Value"},
    }
    return pa.schema(
        [
            pa.field("key", pa.string()),
            pa.field("image", pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            *SAMPLE_FIELDS,
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


@dataclasses.dataclass(kw_only=True, eq=False)
class Sink(abc.ABC):
    """A file that takes the samples of one shard, in order.

    `path` is the file's final path; `file` is None until it is open.
    """

    path: str
    file: HashingFile | None = None
    num_samples: int = 0

    @abc.abstractmethod
    def add(self, sample: Sample) -> None:
        """Appends a sample."""


@dataclasses.dataclass(kw_only=True, eq=False)
class ParquetSink(Sink):
    """A Parquet file with row groups of about `ROW_GROUP_BYTES`; an empty shard has no rows.

    Pictures wait for their row group in the file `waiting`. In memory, those of eight variants
    would take 50 MB of each worker.
    """

    schema: pa.Schema
    write: Callable[[pa.Table], object]
    waiting: IO[bytes]
    _rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    _ends: list[int] = dataclasses.field(default_factory=lambda: [0])

    @classmethod
    @contextlib.contextmanager
    def open(cls, store: Store, staged: str, path: str, schema: pa.Schema) -> Iterator[Self]:
        """Opens a sink that writes to `staged`, and whose digest names the final `path`."""
        # Pictures are compressed already, and have no useful dictionary or statistics.
        columns = [name for name in schema.names if name != "image"]
        images = {"image.bytes": "none", "image.path": "zstd"}
        with (
            store.create(staged) as file,
            parquet_writer(
                file,
                schema,
                compression=dict.fromkeys(columns, "zstd") | images,
                use_dictionary=columns,
                write_statistics=columns,
            ) as writer,
            tempfile.TemporaryFile(buffering=1 << 18) as waiting,  # Takes several at once.
        ):
            sink = cls(
                path=path, file=file, schema=schema, write=writer.write_table, waiting=waiting
            )
            yield sink
            sink._flush()

    def add(self, sample: Sample) -> None:
        self.num_samples += 1
        image = {"path": f"{sample.key}.{sample.suffix}"}
        self._rows.append({"key": sample.key, "image": image, **sample.fields})
        self._ends.append(self._ends[-1] + self.waiting.write(sample.image))
        if self._ends[-1] >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table, field = pa.Table.from_pylist(self._rows, self.schema), self.schema.field("image")
            _, paths = table["image"].combine_chunks().flatten()
            self.waiting.flush()
            content = mmap.mmap(self.waiting.fileno(), self._ends[-1], access=mmap.ACCESS_READ)
            buffers = [*pa.array(self._ends, pa.int32()).buffers(), pa.py_buffer(content)]
            pictures = pa.Array.from_buffers(pa.binary(), len(paths), buffers)
            images = pa.StructArray.from_arrays([pictures, paths], fields=[*field.type])
            self.write(table.set_column(table.schema.names.index("image"), field, images))
            self._rows.clear()
            self._ends = [self.waiting.seek(0)]


_TAR_BLOCK = 512


@dataclasses.dataclass(frozen=True, eq=False)
class TarWriter:
    """A tar file whose members have a fixed owner, mode and time, and known offsets."""

    file: HashingFile

    def add(self, name: str, data: bytes) -> int:
        """Appends a file; returns the offset of its content in the tar, in bytes."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self.file.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        offset = self.file.size
        self.file.write(data)
        self.file.write(bytes(-len(data) % _TAR_BLOCK))
        return offset

    def close(self) -> None:
        """Writes the end-of-archive mark."""
        self.file.write(bytes(2 * _TAR_BLOCK))


@dataclasses.dataclass(kw_only=True, eq=False)
class WebDatasetSink(Sink):
    """A tar with members `<key>.jpg|png`, `<key>.cls` and `<key>.json`; no file for no sample."""

    stack: contextlib.ExitStack
    store: Store
    staged: str
    tar: TarWriter | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, store: Store, staged: str, path: str) -> Iterator[Self]:
        """Opens a sink that writes to `staged`, and whose digest names the final `path`."""
        with contextlib.ExitStack() as stack:
            sink = cls(path=path, stack=stack, store=store, staged=staged)
            yield sink
            if sink.tar is not None:
                sink.tar.close()

    def add(self, sample: Sample) -> None:
        self.num_samples += 1
        if self.tar is None:
            self.file = self.stack.enter_context(self.store.create(self.staged))
            self.tar = TarWriter(self.file)
        fields = {name: value for name, value in sample.fields.items() if name != "label"}
        self.tar.add(f"{sample.key}.{sample.suffix}", sample.image)
        self.tar.add(f"{sample.key}.cls", shown_bytes(str(sample.fields["label"])))
        self.tar.add(f"{sample.key}.json", shown_bytes(json.dumps(fields, sort_keys=True)))


def open_sinks(
    stack: contextlib.ExitStack,
    store: Store,
    staging: Staging,
    *,
    variants: Iterable[VariantName],
    formats: Sequence[str],
    schema: pa.Schema,
    split: str,
    shard: int,
    num_shards: int,
) -> dict[VariantName, list[Sink]]:
    """Opens the sinks of an output shard: one for each variant and format.

    The store is that of `staging`, which gives the paths until commit, or `Store.together` of it.
    """
    sinks: dict[VariantName, list[Sink]] = {}
    for variant in variants:
        for path in sample_files([variant], formats, split, shard, num_shards):
            staged = staging.staged(path)
            sink = (
                WebDatasetSink.open(store, staged, path)
                if path.endswith(".tar")
                else ParquetSink.open(store, staged, path, schema)
            )
            sinks.setdefault(variant, []).append(stack.enter_context(sink))
    return sinks


def sample_files(
    variants: Iterable[VariantName],
    formats: Sequence[str],
    split: str,
    shard: int,
    num_shards: int,
) -> Iterator[str]:
    """Yields the paths of the files of an output shard with samples; arguments: `open_sinks`."""
    for variant in variants:
        if "parquet" in formats:
            yield f"parquet/{variant}/{split}-{shard:05d}-of-{num_shards:05d}.parquet"
        if "webdataset" in formats:
            yield f"webdataset/{variant}/{split}-{shard:06d}.tar"


def digests_of(sinks: Mapping[VariantName, Sequence[Sink]]) -> tuple[FileDigest, ...]:
    """Returns the digests of the files that there are, once the sinks are closed."""
    return tuple(
        FileDigest(sink.path, sink.file.size, sink.file.sha256, sink.num_samples)
        for variant_sinks in sinks.values()
        for sink in variant_sinks
        if sink.file
    )


LAYER_FILES = ("image", "only_bg_t", "mask")
"""Files of a layer. Each is a tar member `<key>.<file>.png`; together they form one WebDataset
sample."""


def encode_layer(layer: Layer) -> dict[str, bytes]:
    """Encodes the files of a layer as lossless PNGs."""
    return {
        "image": encode_png(layer.image),
        "only_bg_t": encode_png(layer.only_bg_t),
        "mask": encode_mask(layer.mask),
    }


def add_layer(tar: TarWriter, key: str, files: Mapping[str, bytes]) -> Row:
    """Appends a layer; returns the offset and length columns for the layer's record row."""
    columns = {}
    for name in LAYER_FILES:
        columns[f"{name}_offset"] = tar.add(f"{key}.{name}.png", files[name])
        columns[f"{name}_length"] = len(files[name])
    return columns


def layer_ranges(row: Row) -> list[tuple[int, int]]:
    """Returns (offset, length) in bytes of each file of a layer in its tar, by its record row."""
    return [(row[f"{name}_offset"], row[f"{name}_length"]) for name in LAYER_FILES]


def read_layer(store: Store, tar_path: str, row: Row) -> dict[str, bytes]:
    """Reads a layer's encoded files, by columns of its record row; JobError if one is damaged."""
    files = store.read_ranges(tar_path, layer_ranges(row))
    try:
        for file in files:
            check_png(file)
    except UndecodableError as error:
        raise damaged_tar(store.path(tar_path), error) from error
    return dict(zip(LAYER_FILES, files, strict=True))


def damaged_tar(path: str, fault: object) -> JobError:
    """Returns the error for a tar of layers with other content than was written."""
    return JobError(f"{path} is damaged ({fault}). Remove it and run the same command again")


def decode_layer(image: bytes, only_bg_t: bytes, mask: bytes, *, box: Sequence[int]) -> Layer:
    """Decodes the files that `encode_layer` encoded, given the box (x0, y0, x1, y1)."""
    return Layer(
        image=decode_png(image),
        only_bg_t=decode_png(only_bg_t),
        mask=decode_mask(mask),
        box=OutputBox(*box),
    )
