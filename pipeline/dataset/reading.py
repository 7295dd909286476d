"""Reading a finished dataset from Python: `in9.open_dataset`.

Iteration streams the files. Access by position or key reads only the row group, or the members of
the tar, that hold the picture. To find them, the first access to a file reads its keys, row groups
or headers. These positions and the latest row groups are cached.
"""

import bisect
import dataclasses
import functools
import itertools
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, Self

import pyarrow as pa

from pipeline.dataset.folder import Dataset, sample_of, sample_of_row
from pipeline.dataset.manifest import reading_store
from pipeline.dataset.sinks import Sample
from pipeline.errors import counted, did_you_mean
from pipeline.storage.state_files import parquet_reader, read_table
from pipeline.storage.store import FileDigest, Store
from transforms.codec import decode_image
from transforms.geometry import Pixels
from transforms.variants import VariantName

Example = tuple[Pixels, int, dict[str, Any]]
"""A picture (S, S, 3) uint8 RGB, its label, and its metadata."""


@dataclasses.dataclass(frozen=True)
class DatasetReader(Sequence[Example]):
    """One variant of one split: a sequence of (image, label, meta).

    `image` is (S, S, 3) uint8 RGB; for `fg_mask`, 255 on the foreground and 0 elsewhere. `label` is
    a position in `classes`. `meta` holds `key`, `wnid`, `imagenet_index`, `fg_key`, `bg_key`,
    `bg_label`, `bg_wnid`, `box` and `fg_fraction`, None where a picture has no such value.

    All variants hold the same keys in the same order. Readers can be pickled, so worker processes,
    such as those of torch's DataLoader, can use them.
    """

    dataset: Dataset
    variant: str
    split: str

    @classmethod
    def open(cls, path: str, variant: str | None, split: str | None) -> Self:
        """Opens a dataset; arguments and errors are those of `in9.open_dataset`."""
        dataset = Dataset.open(reading_store(path))
        default = dataset.manifest.config.eval_split
        return cls(dataset, str(dataset.variants[0]), default).select(variant, split)

    @property
    def variants(self) -> tuple[str, ...]:
        """All variants of the dataset, in the paper's order."""
        return tuple(map(str, self.dataset.variants))

    @property
    def splits(self) -> tuple[str, ...]:
        return self.dataset.manifest.config.split

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the superclasses, by label."""
        return self.dataset.taxonomy.names

    def select(self, variant: str | None = None, split: str | None = None) -> Self:
        """Returns a reader of another variant or split. Raises ValueError if there is none."""
        return dataclasses.replace(
            self,
            variant=_one_of("variant", self.variant if variant is None else variant, self.variants),
            split=_one_of("split", self.split if split is None else split, self.splits),
        )

    def __repr__(self) -> str:
        return (
            f"<{counted(len(self), 'image')} of {self.split}, {self.variant}, in "
            f"{self.dataset.store.root}>"
        )

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[Example]:
        for shard in self.dataset.shards(self.split):
            for sample in self.dataset.samples(self.split, shard, VariantName.parse(self.variant)):
                yield _example(sample)

    def __getitem__(self, index: int | str) -> Example:  # type: ignore[override]
        """Returns an image by its position or its key.

        Raises IndexError or KeyError if there is no such image, TypeError if this is neither a
        position nor a key, JobError if the file that holds it is broken.
        """
        if isinstance(index, str):
            if (found := self._locate(index)) is None:
                raise KeyError(index)
            return self._example(*found)
        if not hasattr(index, "__index__"):
            raise TypeError(f"dataset[{index!r}]: an image has one position or one key")
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, position) - 1
        file = self._files[shard]
        assert file is not None
        return self._example(file, position - self._ends[shard])

    def _example(self, file: FileDigest, position: int) -> Example:
        with self.dataset.naming_file(file.path):
            if not self.dataset.store.is_remote:  # There, this would download the whole file.
                self.dataset.verify(file)
            return _example(_sample(self.dataset.store, file, position))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._locate(key) is not None

    @functools.cached_property
    def _files(self) -> tuple[FileDigest | None, ...]:
        """The file of each shard, None for a shard without images."""
        digests = (
            self.dataset.shard_files(self.split, shard, (VariantName.parse(self.variant),))
            for shard in self.dataset.shards(self.split)
        )
        return tuple(files[0] if files and files[0].samples else None for files in digests)

    @functools.cached_property
    def _ends(self) -> tuple[int, ...]:
        """0, followed by the number of images up to the end of each shard."""
        sizes = (0 if file is None else file.samples or 0 for file in self._files)
        return tuple(itertools.accumulate(sizes, initial=0))

    def _locate(self, key: str) -> tuple[FileDigest, int] | None:
        """Returns (the file that holds a key, the key's position in it); None if no file does."""
        file = self._files[self.dataset.shard_of(self.split, key)]
        if file is None:
            return None
        with self.dataset.naming_file(file.path):
            position = _positions(self.dataset.store, file).get(key)
        return None if position is None else (file, position)


def _one_of(kind: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise ValueError(
            f"no {kind} {name!r}; the dataset has {', '.join(known)}{did_you_mean(name, known)}"
        )
    return name


def _example(sample: Sample) -> Example:
    meta: dict[str, Any] = {"key": sample.key, **sample.fields}
    return decode_image(sample.image), int(meta.pop("label")), meta


# The caches below never go stale, because a file with other content has another digest.


@functools.lru_cache(maxsize=64)
def _positions(store: Store, file: FileDigest) -> dict[str, int]:
    """Returns the position of each key in a file."""
    if file.path.endswith(".tar"):
        keys: Sequence[str] = [key for key, _ in _members(store, file)]
    else:
        keys = read_table(store, file.path, columns=["key"])["key"].to_pylist()
    return {key: position for position, key in enumerate(keys)}


def _sample(store: Store, file: FileDigest, position: int) -> Sample:
    if file.path.endswith(".tar"):
        key, members = _members(store, file)[position]
        contents = store.read_ranges(file.path, list(members.values()))
        return sample_of(key, dict(zip(members, contents, strict=True)))
    group = bisect.bisect_right(_group_ends(store, file), position) - 1
    table = _row_group(store, file, group)
    (row,) = table.slice(position - _group_ends(store, file)[group], 1).to_pylist()
    return sample_of_row(row)


@functools.lru_cache(maxsize=64)
def _group_ends(store: Store, file: FileDigest) -> tuple[int, ...]:
    """Returns 0, followed by the number of rows up to the end of each row group."""
    with parquet_reader(store.arrow_source(file.path)) as opened:
        sizes = [opened.metadata.row_group(n).num_rows for n in range(opened.num_row_groups)]
    return tuple(itertools.accumulate(sizes, initial=0))


@functools.lru_cache(maxsize=4)
def _row_group(store: Store, file: FileDigest, group: int) -> pa.Table:
    """Reads a row group, which has a few megabytes of pictures."""
    with parquet_reader(store.arrow_source(file.path)) as opened:
        return opened.read_row_group(group)


@functools.lru_cache(maxsize=64)
def _members(store: Store, file: FileDigest) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """Lists the samples of a tar: each key with its members' (offset, length) by suffix."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    with store.open(file.path) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            members.setdefault(key, {})[suffix] = (member.offset_data, member.size)
    return list(members.items())
