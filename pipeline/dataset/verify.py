"""Verify: a dataset against its manifest, and its files against each other."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.folder import Dataset, read_parquet, read_webdataset
from pipeline.dataset.layer_files import PARTS
from pipeline.dataset.records import ACCEPTED, count_sources
from pipeline.dataset.shards import DATA_FOLDERS, index_file, parquet_file, webdataset_file
from pipeline.dataset.sinks import Sample
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy

# What a broken file can provoke while it is read.
_READ_ERRORS = (OSError, ValueError, KeyError, tarfile.TarError, pa.ArrowException)


def verify(dataset: Dataset, taxonomy: Taxonomy) -> Iterator[str]:
    """Checks everything that can be checked without the input.

    Args:
      dataset: with its manifest.
      taxonomy: that its labels refer to.

    Yields:
      One line for each fault; none for a sound dataset.
    """
    broken = set()
    for path, fault in _check_files(dataset):
        broken.add(path)
        yield fault
    yield from _check_records(dataset, broken)
    for split in dataset.manifest.config.split:
        yield from _check_index(dataset, split, broken)
        yield from _check_samples(dataset, split, broken, taxonomy)


def _check_files(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Presence, size and checksum of every file; and files that should not be there."""
    store, manifest = dataset.store, dataset.manifest
    known = set()
    for file in manifest.files:
        known.add(file.path)
        size = store.size(file.path)
        if size is None:
            yield file.path, f"{file.path}: missing"
        elif size != file.bytes:
            yield file.path, f"{file.path}: {size} bytes, the manifest says {file.bytes}"
        else:
            try:
                intact = store.digest(file.path) == file.sha256
            except OSError as error:
                yield file.path, f"{file.path}: cannot be read: {error.strerror}"
                continue
            if not intact:
                yield file.path, f"{file.path}: the content has changed (sha256 differs)"
    for folder in DATA_FOLDERS:
        for path in store.walk(folder):
            if path not in known:
                yield path, f"{path}: not in the manifest"


def _check_records(dataset: Dataset, broken: set[str]) -> Iterator[str]:
    """Rows of records and index, and members of the layers' tars, against the manifest."""
    store = dataset.store
    for file in dataset.manifest.files:
        if file.path in broken or not file.path.startswith(("layers/", "index/", "backgrounds/")):
            continue
        try:
            if file.path.endswith(".tar"):
                with store.open(file.path) as data, tarfile.open(fileobj=data) as tar:
                    found = len(tar.getnames()) / len(PARTS)
            else:
                found = pq.read_metadata(store.arrow_source(file.path)).num_rows
        except _READ_ERRORS as error:
            yield f"{file.path}: cannot be read: {type(error).__name__}: {error}"
            continue
        if found != file.samples:
            yield f"{file.path}: {found:g} samples, the manifest says {file.samples}"


def _check_index(dataset: Dataset, split: str, broken: set[str]) -> Iterator[str]:
    """Counts of the index against the manifest."""
    manifest = dataset.manifest
    paths = [
        index_file(split, shard, manifest.shards[split].output) for shard in dataset.shards(split)
    ]
    if broken.intersection(paths):
        return
    statuses: Counter[str] = Counter()
    selected = sources = 0
    try:
        for row in dataset.index(split):
            statuses[row["status"]] += 1
            selected += row["selected"]
            sources += count_sources([row])
    except _READ_ERRORS as error:
        yield f"index of {split}: cannot be read: {type(error).__name__}: {error}"
        return
    counted = {
        "listed": sources,
        **({"objects": statuses.total()} if "objects" in manifest.images[split] else {}),
        "accepted": statuses[ACCEPTED],
        "rejected": statuses.total() - statuses[ACCEPTED],
        "selected": selected,
    }
    for name, count in counted.items():
        if manifest.images[split][name] != count:
            yield (
                f"index of {split}: {count} images {name}, "
                f"the manifest says {manifest.images[split][name]}"
            )
    reasons = {reason: n for reason, n in statuses.items() if reason != ACCEPTED}
    stated = manifest.rejections[split]
    if reasons != stated:
        yield f"index of {split}: rejections {reasons}, the manifest says {stated}"


def _check_samples(
    dataset: Dataset, split: str, broken: set[str], taxonomy: Taxonomy
) -> Iterator[str]:
    """Every variant in every format: the keys that the index selects, in its order, with
    its labels and backgrounds, and as many as the manifest says."""
    manifest = dataset.manifest
    count = manifest.shards[split].output
    stated = {file.path: file.samples for file in manifest.files}
    totals: dict[str, Counter[str]] = {variant: Counter() for variant in dataset.variants}
    unknown: set[str] = set()
    for shard in dataset.shards(split):
        index = index_file(split, shard, count)
        if index in broken:
            unknown.update(dataset.variants)
            continue
        chosen = [row for row in dataset.index_of_shard(split, shard) if row["selected"]]
        for variant in dataset.variants:
            totals[variant].update(taxonomy.names[row["label"]] for row in chosen)
            expected = [
                (row["key"], row["label"], row["wnid"], row.get(f"{variant}_bg_key"))
                for row in chosen
            ]
            for path, read in _files(dataset, split, shard, variant):
                if path in broken:
                    continue
                try:
                    found = [
                        (s.key, s.fields["label"], s.fields["wnid"], s.fields["bg_key"])
                        for s in read(dataset.store, path)
                    ]
                except _READ_ERRORS as error:
                    yield f"{path}: cannot be read: {type(error).__name__}: {error}"
                    continue
                if stated.get(path, 0) != len(found):
                    yield f"{path}: {len(found)} samples, the manifest says {stated.get(path, 0)}"
                if len(found) != len(expected):
                    yield f"{path}: {len(found)} samples, the index selects {len(expected)}"
                elif found != expected:
                    key = next(e[0] for e, f in zip(expected, found, strict=True) if e != f)
                    yield f"{path}: differs from the index at {key}"
    for variant in dataset.variants:
        named = manifest.samples[split].get(variant, {})
        counted = {name: totals[variant][name] for name in taxonomy.names}
        if variant not in unknown and named != counted:
            yield (
                f"{variant} of {split}: {json.dumps(counted)} samples, "
                f"the manifest says {json.dumps(named)}"
            )


def _files(
    dataset: Dataset, split: str, shard: int, variant: str
) -> list[tuple[str, Callable[[Store, str], Iterator[Sample]]]]:
    """Files of a variant's shard, each with its reader."""
    files: list[tuple[str, Callable[[Store, str], Iterator[Sample]]]] = []
    if "parquet" in dataset.manifest.config.compose.formats:
        count = dataset.manifest.shards[split].output
        files.append((parquet_file(variant, split, shard, count), read_parquet))
    if "webdataset" in dataset.manifest.config.compose.formats:
        files.append((webdataset_file(variant, split, shard), read_webdataset))
    return files
