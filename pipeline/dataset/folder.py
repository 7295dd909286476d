"""A finished dataset folder, read back: its shards, samples and index.

It also divides a split into pictures for training and for the test. If a share is held out, a
training picture shows nothing of a held-out image, neither as foreground nor as background. In a
mixed variant, each foreground takes the first replicate whose background is not held out; one
without such a replicate is left out.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path, PurePath
from typing import Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.manifest import MANIFEST, Manifest, read_manifest, reading_store
from pipeline.dataset.records import Row, index_file, read_small
from pipeline.dataset.sinks import SAMPLE_FIELDS, Sample, sample_files
from pipeline.errors import JobError, UsageError
from pipeline.storage.state_files import DamagedError, parquet_reader, parse_parquet
from pipeline.storage.store import FileDigest, Store
from transforms.limits import MAX_PICTURE_BYTES, Unread, load_json
from transforms.selection import held_out
from transforms.taxonomy import Taxonomy, imagenet9
from transforms.variants import VariantName, draws_of

LICENCE = "GPL-2.0-only"
"""SPDX identifier of the licence of the sample's pictures, and of datasets made from them
(`data/sample/README.md`)."""


def sample_folder() -> str:
    """Returns the folder of the embedded sample, which has 72 pictures in ImageNet's layout."""
    return str(resources.files("pipeline") / "data" / "sample")


@functools.cache
def sample_digests() -> frozenset[str]:
    """Returns the hexadecimal MD5 of each picture of the sample, which tell it in any input."""
    return frozenset(
        hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in Path(sample_folder()).glob("val/*/*.JPEG")
    )


def sample_sources() -> str:
    """Returns the paragraph on sources and licence of the sample's own README."""
    paragraphs = Path(sample_folder(), "README.md").read_text(encoding="utf-8").split("\n\n")
    (sources,) = (each for each in paragraphs if each.startswith("Sources and licence: "))
    return sources


T = TypeVar("T")

SAMPLES_AT_ONCE = 64
"""Number of samples in a table that is not read from a file of Parquet."""
_FIELD_NAMES = [field.name for field in SAMPLE_FIELDS]

_verified: set[tuple[str, str]] = set()
"""(absolute path, SHA-256) of each file whose content this process has verified."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A finished dataset."""

    store: Store
    manifest: Manifest

    @classmethod
    def open(cls, store: Store) -> Self:
        """Opens a dataset folder. Raises UsageError if it holds no finished dataset."""
        manifest = read_manifest(store)
        if manifest is None:
            raise UsageError(_no_dataset(store))
        return cls(store, manifest)

    @property
    def config(self) -> DatasetConfig:
        return self.manifest.config

    @property
    def variants(self) -> tuple[VariantName, ...]:
        """Its variants, replicates included, in the order of `Manifest.variants`."""
        return self.manifest.variants

    @property
    def picture_variants(self) -> tuple[VariantName, ...]:
        """The variants that models are evaluated on, without replicates."""
        return tuple(name for name in self.variants if name.is_picture and not name.draw)

    @property
    def taxonomy(self) -> Taxonomy:
        return self.manifest.taxonomy or imagenet9()

    @property
    def is_imagenet9(self) -> bool:
        return self.manifest.taxonomy is None

    @property
    def is_comparable(self) -> bool:
        """Whether published results on ImageNet-9 compare: same classes, and not the sample."""
        return self.is_imagenet9 and not self.manifest.is_sample

    @property
    def custom_taxonomy(self) -> tuple[str, ...]:
        """What result fingerprints hold of the taxonomy: its description; none for ImageNet-9."""
        return () if self.is_imagenet9 else (self.taxonomy.description,)

    def shards(self, split: str) -> range:
        return range(self.manifest.shards[split].output)

    def shard_of(self, split: str, key: str) -> int:
        """Returns the output shard of a selected image; all objects of an image share a shard."""
        if self.manifest.config.segment.objects == "each":
            key = key.rpartition("_")[0]
        counts = self.manifest.shards[split]
        return counts.source_shard(key) % counts.output

    def shard_files(
        self, split: str, shard: int, variants: Iterable[VariantName]
    ) -> list[FileDigest]:
        """Returns digests of a shard's files for some variants: Parquet if there is any."""
        paths = (self._file(variant, split, shard) for variant in variants)
        return [self.digests[path] for path in paths if path in self.digests]

    def pictures(self, split: str, shard: int) -> int:
        """Counts a shard's pictures that models are evaluated on, over all variants."""
        variants = (name for name in self.variants if name.is_picture)
        return sum(file.samples or 0 for file in self.shard_files(split, shard, variants))

    def samples(
        self, split: str, shard: int, variant: VariantName
    ) -> Generator[Sample, None, None]:
        """Yields a shard's samples in order, once its file is verified; JobError if broken."""
        path = self._file(variant, split, shard)
        read = read_webdataset if path.endswith(".tar") else read_parquet
        return self._whole(path, lambda store: read(store, path))

    def tables(
        self, split: str, shard: int, variant: VariantName, columns: Sequence[str]
    ) -> Generator[pa.Table, None, None]:
        """Yields columns of a shard's samples in order, in tables of a few MB.

        The file is verified first; in object storage, only if its pictures are read. Columns are
        `key`, names of `SAMPLE_FIELDS`, and `image` for the encoded bytes. Raises JobError if a
        file is broken.
        """
        path = self._file(variant, split, shard)
        return self._whole(
            path,
            lambda store: read_tables(store, path, columns),
            # For a few columns, an object is not downloaded whole.
            is_verified="image" in columns or not self.store.is_remote,
        )

    def _whole(
        self,
        path: str,
        read: Callable[[Store], Iterable[T]],
        *,
        is_verified: bool = True,
    ) -> Generator[T, None, None]:
        """Yields the pieces of a file, which is verified before, unless `is_verified` is False.

        Raises JobError if it is broken, or has not as many samples as the manifest lists.
        """
        count = 0
        with (
            self.naming_file(path),
            self._verified(path) if is_verified else contextlib.nullcontext(self.store) as store,
        ):
            for piece in read(store):
                yield piece
                count += len(piece) if isinstance(piece, pa.Table) else 1
            file = self.digests.get(path)
            # An empty tar has no file, so the manifest does not list it.
            listed = file.samples if file else 0
            if count != listed:
                raise ValueError(f"it holds {count} samples, but {MANIFEST} says {listed}")

    @contextlib.contextmanager
    def _verified(self, path: str) -> Iterator[Store]:
        """Yields the folder to read a file from, whose content is verified, once in each process.

        So it reads a file on this machine twice, the second time from the system's cache, and
        downloads an object once, to a temporary folder.
        """
        file, store = self.digests.get(path), self.store
        with contextlib.ExitStack() as stack:
            if file is not None and (store.path(path), file.sha256) not in _verified:
                if store.is_remote:
                    store = Store(stack.enter_context(tempfile.TemporaryDirectory()))
                    self.store.copy_into(store, [(path, path)])
                self.verify(file, store)
            yield store

    def verify(self, file: FileDigest, store: Store | None = None) -> None:
        """Checks that a file has the content that was committed, once in a process.

        `store` is the folder that holds it; None for the dataset's own.
        """
        known = (self.store.path(file.path), file.sha256)
        if known not in _verified and (store or self.store).digest(file.path) != file.sha256:
            raise self._changed(file.path)
        _verified.add(known)

    @contextlib.contextmanager
    def naming_file(self, path: str) -> Iterator[None]:
        """Turns errors of the block into a JobError that names the broken file."""
        try:
            yield
        # Arrow raises the first two.
        except (OSError, ValueError, tarfile.TarError, KeyError, TypeError) as error:
            is_other = isinstance(error, KeyError | TypeError)
            cause = f"its samples have another form: {error!r}" if is_other else str(error)
            raise JobError(
                f"{self.store.path(path)} cannot be read ({cause}); "
                f"see: in9 verify --dataset {self.store.root}"
            ) from error

    def _changed(self, path: str) -> DamagedError:
        return DamagedError(
            f"{self.store.path(path)} is missing or has changed since it was committed; remove it, "
            "and run the command that made the dataset again"
        )

    def index(self, split: str) -> Iterator[Row]:
        """Yields a split's index rows: one per source image, or object with `--objects each`."""
        for shard in self.shards(split):
            yield from self.index_of_shard(split, shard)

    def index_of_shard(self, split: str, shard: int) -> list[Row]:
        """Reads the index rows of an output shard, in the order of its samples."""
        return list(self.index_table(split, shard).to_pylist())

    def index_table(self, split: str, shard: int, columns: list[str] | None = None) -> pa.Table:
        """Reads the index of an output shard: those of the columns that it has, or all.

        Raises JobError if the file is missing, or has changed since it was committed.
        """
        path = index_file(split, shard, self.manifest.shards[split].output)
        if path not in self.digests or not self.store.exists(path):
            raise self._changed(path)
        with self._verified(path) as store:
            return parse_parquet(store, path, lambda source: read_small(source, columns))

    def chosen_samples(
        self, split: str, shard: int, variant: VariantName, keys: Sequence[str]
    ) -> Generator[Sample, None, None]:
        """Yields the samples of some keys, in the shard's order; raises as `samples` does."""
        wanted = set(keys)
        with contextlib.closing(self.samples(split, shard, variant)) as samples:
            found = (sample for sample in samples if sample.key in wanted)
            yield from itertools.islice(found, len(wanted))

    @functools.cached_property
    def digests(self) -> dict[str, FileDigest]:
        """What the manifest says of each file, by path."""
        return {file.path: file for file in self.manifest.files}

    def _file(self, variant: VariantName, split: str, shard: int) -> str:
        formats, counts = self.manifest.config.compose.formats, self.manifest.shards[split]
        return next(sample_files([variant], formats, split, shard, counts.output))


def _no_dataset(store: Store) -> str:
    """Says why a path is not a dataset, and which command makes one from it."""
    is_archive = not {".tar", ".tgz"}.isdisjoint(PurePath(store.root).suffixes)
    if store.has_folder("original/val") or (is_archive and store.exists("")):
        return (
            f"{store.root} holds no finished dataset; from data in the released layout, make one "
            f"with: in9 import --from {store.root} --output released"
        )
    if store.exists(""):
        return f"{store.root} is a file; give the folder of a dataset"
    cause = (
        f"{store.root} holds no finished dataset: there is no {store.path(MANIFEST)}"
        if store.has_folder("")
        else f"{store.root} does not exist"
    )
    return f"{cause}. Make a dataset with: in9 generate --output {store.root}"


def read_parquet(store: Store, path: str) -> Iterator[Sample]:
    """Yields the samples of a Parquet shard, which is read a batch at a time."""
    # Otherwise, Arrow would read the whole shard into memory before the first batch.
    with parquet_reader(store.arrow_source(path), pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=SAMPLES_AT_ONCE):
            yield from map(sample_of_row, batch.to_pylist())


def sample_of_row(row: Row) -> Sample:
    """Builds a sample from its row in a Parquet file."""
    suffix = row["image"]["path"].rpartition(".")[2]
    fields = {name: row[name] for name in _FIELD_NAMES}
    return Sample(key=row["key"], image=row["image"]["bytes"], suffix=suffix, fields=fields)


def read_tables(store: Store, path: str, columns: Sequence[str]) -> Generator[pa.Table, None, None]:
    """Yields columns of a shard of either format, as `Dataset.tables` does."""
    if path.endswith(".tar"):
        samples = read_webdataset(store, path)
        while batch := list(itertools.islice(samples, SAMPLES_AT_ONCE)):
            yield table_of(batch, columns)
        return
    leaves = ["image.bytes" if name == "image" else name for name in columns]
    with parquet_reader(store.arrow_source(path)) as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, leaves)
            if "image" in columns:
                images = pc.struct_field(table["image"], "bytes")
                table = table.set_column(table.schema.get_field_index("image"), "image", images)
            yield table.select(columns).replace_schema_metadata()


def table_of(samples: Sequence[Sample], columns: Sequence[str]) -> pa.Table:
    """Returns columns of samples, named and typed as those of `Dataset.tables`."""
    types = {"key": pa.string(), "image": pa.binary()} | {f.name: f.type for f in SAMPLE_FIELDS}
    attributes = {"key": [s.key for s in samples], "image": [s.image for s in samples]}
    return pa.table(
        {
            name: pa.array(attributes.get(name) or [s.fields[name] for s in samples], types[name])
            for name in columns
        }
    )


def read_webdataset(store: Store, path: str) -> Iterator[Sample]:
    """Yields the samples of a tar shard; an empty shard has no file."""
    if not store.exists(path):
        return
    with store.open(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        members: dict[str, bytes] = {}
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                raise OSError(f"{path} holds {member.name}, which is not a file")
            key, _, suffix = member.name.partition(".")
            is_large = member.size > MAX_PICTURE_BYTES
            members[suffix] = (
                Unread.from_size(member.size, MAX_PICTURE_BYTES) if is_large else content.read()
            )
            if suffix == "json":
                yield sample_of(key, members)
                members = {}


def sample_of(key: str, members: dict[str, bytes]) -> Sample:
    """Builds a sample from its tar members, given by suffix."""
    row = load_json(members.pop("json")) | {"label": int(members.pop("cls"))}
    fields = {name: row[name] for name in _FIELD_NAMES}
    ((suffix, image),) = members.items()
    return Sample(key=key, image=image, suffix=suffix, fields=fields)


def selected_rows(
    dataset: Dataset, split: str, holdout: float = 0.0, shard: int | None = None
) -> list[Row]:
    """Reads selected index rows for the test, in order; of all shards if `shard` is None.

    `holdout` is the share of the split's groups of images that is held out for the test; with 0,
    all images are for the test. Images of one group stay together.
    """
    rows = dataset.index(split) if shard is None else dataset.index_of_shard(split, shard)
    selected = [row for row in rows if row["selected"]]
    if not holdout:
        return selected
    is_out = held_out([row.get("group") or row["key"] for row in selected], holdout)
    return [row for row, out in zip(selected, is_out, strict=True) if out]


def open_named(flag: str, folder: str) -> Dataset:
    """Opens the dataset, or its newest version, that another flag than `--dataset` names."""
    try:
        return Dataset.open(reading_store(folder))
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from error


def refuse_empty_test(dataset: Dataset, split: str, holdout: float) -> None:
    """Raises UsageError if so small a share is held out that no image is left to test on."""
    if (
        holdout
        and dataset.manifest.images[split]["selected"]
        and not any(selected_rows(dataset, split, holdout, n) for n in dataset.shards(split))
    ):
        raise UsageError(f"--holdout {holdout:g} leaves no image of {split} to test on")


def training_pictures(
    dataset: Dataset, split: str, variant: str, holdout: float
) -> dict[str, VariantName]:
    """Chooses the pictures that a model is trained on.

    Returns, for the key of each picture in the dataset's order, the variant to take it from:
    `variant`, which has no number of a replicate, or one of its replicates.
    """
    rows = selected_rows(dataset, split)
    tested = selected_rows(dataset, split, holdout) if holdout else ()
    test_keys = {row["key"] for row in tested}
    names = draws_of(dataset.variants).get(variant, ())
    pictures: dict[str, VariantName] = {}
    # The index has no backgrounds of pictures from outside.
    own = {
        sample["key"]: sample["bg_key"]
        for shard in dataset.shards(split)
        if test_keys and variant in dataset.manifest.outside
        for table in dataset.tables(split, shard, names[0], ["key", "bg_key"])
        for sample in table.to_pylist()
    }
    for row in rows:
        usable = (
            name
            for name in names
            if (row[f"{name.pairs}_bg_key"] if name.is_mixed else own.get(row["key"]))
            not in test_keys
        )
        if row["key"] not in test_keys and (name := next(usable, None)):
            pictures[row["key"]] = name
    return pictures
