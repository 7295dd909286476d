"""Reading a finished dataset from Python: `in9.open_dataset`.

In order, a file is streamed. By position or key, no more is read than the row group, or the
members of the tar, that hold the picture; what has been read last is kept.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.folder import Dataset, sample_of
from pipeline.dataset.latest import reading_store
from pipeline.dataset.sinks import Sample
from pipeline.storage.state_files import read_table
from pipeline.storage.store import FileDigest, Store
from transforms.codec import decode_image
from transforms.geometry import Pixels

Example = tuple[Pixels, int, dict[str, Any]]
"""A picture (S, S, 3) uint8 RGB, its label, and what else is known of it."""


@dataclasses.dataclass(frozen=True)
class DatasetReader(Sequence[Example]):
    """One variant of one split: a sequence of (image, label, meta).

    `image` is (S, S, 3) uint8 RGB; of `fg_mask`, 255 on the foreground and 0 elsewhere.
    `label` is a position in `classes`. `meta` holds `key`, `wnid`, `imagenet_index`, `fg_key`,
    `bg_key`, `bg_label`, `bg_wnid`, `box` and `fg_fraction`, None where there is none.

    All variants hold the same keys in the same order. Readers can be pickled, so that worker
    processes, as those of torch's DataLoader, may take them.

    Attributes:
      dataset: that it reads.
      variant: what its pictures are.
      split: that they are of.
    """

    dataset: Dataset
    variant: str
    split: str

    @classmethod
    def open(cls, path: str, variant: str | None, split: str | None) -> DatasetReader:
        """Arguments and errors as `in9.open_dataset`."""
        dataset = Dataset.open(reading_store(path))
        splits = dataset.manifest.config.split
        first = "val" if "val" in splits else splits[0]
        return cls(
            dataset,
            _one_of("variant", variant or dataset.variants[0], dataset.variants),
            _one_of("split", split or first, splits),
        )

    @property
    def variants(self) -> tuple[str, ...]:
        """All variants of the dataset, in the paper's order."""
        return self.dataset.variants

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits of the dataset."""
        return self.dataset.manifest.config.split

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the superclasses, by label."""
        return self.dataset.taxonomy.names

    def select(self, variant: str | None = None, split: str | None = None) -> DatasetReader:
        """The same dataset in another variant or split. Raises ValueError if it has none such."""
        return DatasetReader(
            self.dataset,
            _one_of("variant", variant or self.variant, self.variants),
            _one_of("split", split or self.split, self.splits),
        )

    def __repr__(self) -> str:
        where = self.dataset.store.root
        return f"<{len(self)} images of {self.split}, {self.variant}, in {where}>"

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[Example]:
        for shard in self.dataset.shards(self.split):
            for sample in self.dataset.samples(self.split, shard, self.variant):
                yield _example(sample)

    def __getitem__(self, place: int | str) -> Example:  # type: ignore[override]
        """An image by its position or its key.

        Raises:
          IndexError, KeyError: there is none.
        """
        if isinstance(place, str):
            return _example(self._sample_of_key(place))
        position = place + len(self) if place < 0 else place
        if not 0 <= position < len(self):
            raise IndexError(f"image {place} of {len(self)}")
        shard = bisect.bisect_right(self._ends, position) - 1
        file = self._files[shard]
        assert file is not None
        return _example(_sample(self.dataset.store, file, position - self._ends[shard]))

    def __contains__(self, key: object) -> bool:
        """Whether there is an image of this key."""
        if not isinstance(key, str):
            return False
        try:
            self._place_of_key(key)
        except KeyError:
            return False
        return True

    @functools.cached_property
    def _files(self) -> tuple[FileDigest | None, ...]:
        """The file of each shard, None where there are no images."""
        digests = (
            self.dataset.shard_files(self.split, shard, (self.variant,))
            for shard in self.dataset.shards(self.split)
        )
        return tuple(found[0] if found and found[0].samples else None for found in digests)

    @functools.cached_property
    def _ends(self) -> tuple[int, ...]:
        """0, and how many images there are up to the end of each shard."""
        sizes = (0 if file is None else file.samples or 0 for file in self._files)
        return tuple(itertools.accumulate(sizes, initial=0))

    def _place_of_key(self, key: str) -> tuple[FileDigest, int]:
        """The only file that can hold a key, and its position there."""
        file = self._files[self.dataset.shard_of(self.split, key)]
        if file is None:
            raise KeyError(key)
        return file, _positions(self.dataset.store, file)[key]

    def _sample_of_key(self, key: str) -> Sample:
        file, position = self._place_of_key(key)
        return _sample(self.dataset.store, file, position)


def _one_of(what: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise ValueError(f"no {what} {name!r}; the dataset has {', '.join(known)}")
    return name


def _example(sample: Sample) -> Example:
    meta: dict[str, Any] = {"key": sample.key, **sample.fields}
    label = int(meta.pop("label"))
    return decode_image(sample.image), label, meta


# A file of another content has another digest: what is kept of it is never out of date.


@functools.lru_cache(maxsize=64)
def _positions(store: Store, file: FileDigest) -> dict[str, int]:
    """Position of each key in a file."""
    if file.path.endswith(".tar"):
        keys: Sequence[str] = [key for key, _ in _members(store, file)]
    else:
        keys = read_table(store, file.path, columns=["key"])["key"].to_pylist()
    return {key: position for position, key in enumerate(keys)}


def _sample(store: Store, file: FileDigest, position: int) -> Sample:
    """The sample at a position of a file."""
    if file.path.endswith(".tar"):
        return _tar_sample(store, file, position)
    group = bisect.bisect_right(_group_ends(store, file), position) - 1
    table = _row_group(store, file, group)
    (row,) = table.slice(position - _group_ends(store, file)[group], 1).to_pylist()
    image, key = row.pop("image"), row.pop("key")
    return Sample(key, image["bytes"], image["path"].rpartition(".")[2], row)


@functools.lru_cache(maxsize=64)
def _group_ends(store: Store, file: FileDigest) -> tuple[int, ...]:
    """0, and how many rows there are up to the end of each row group."""
    metadata = pq.read_metadata(store.arrow_source(file.path))
    sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return tuple(itertools.accumulate(sizes, initial=0))


@functools.lru_cache(maxsize=4)
def _row_group(store: Store, file: FileDigest, group: int) -> pa.Table:
    """A few megabytes of pictures."""
    with pq.ParquetFile(store.arrow_source(file.path)) as opened:
        return opened.read_row_group(group)


@functools.lru_cache(maxsize=64)
def _members(store: Store, file: FileDigest) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """Of each sample of a tar its key, and where its members are: (offset, length) by suffix."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    with store.open(file.path) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            found.setdefault(key, {})[suffix] = (member.offset_data, member.size)
    return list(found.items())


def _tar_sample(store: Store, file: FileDigest, position: int) -> Sample:
    key, members = _members(store, file)[position]
    read = store.read_ranges(file.path, list(members.values()))
    return sample_of(key, dict(zip(members, read, strict=True)))
