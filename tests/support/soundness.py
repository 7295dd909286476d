"""Checks that the files of a dataset agree: records, index, samples and manifest."""

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.commands.finished import verify
from pipeline.dataset.folder import Dataset, read_parquet, read_webdataset
from pipeline.dataset.manifest import reading_store
from pipeline.dataset.records import ACCEPTED
from pipeline.dataset.sinks import LAYER_FILES, Sample, sample_files
from pipeline.storage.store import Store
from transforms.variants import VariantName


def assert_sound(output: Path | str) -> None:
    """Fails if `in9 verify` finds a fault or if files of the dataset contradict each other."""
    dataset = Dataset.open(reading_store(str(output)))
    assert [*verify(dataset), *contradictions(dataset)] == []


def contradictions(dataset: Dataset) -> Iterator[str]:
    """Yields a line for each contradiction in a dataset whose files match its manifest."""
    yield from _check_records(dataset)
    for split in dataset.manifest.config.split:
        yield from _check_index(dataset, split)
        yield from _check_samples(dataset, split)


def _check_records(dataset: Dataset) -> Iterator[str]:
    """Compares the rows of records and index, and the layers' tars, with the manifest."""
    store = dataset.store
    for file in dataset.manifest.files:
        if not file.path.startswith(("layers/", "index/", "backgrounds/")):
            continue
        if file.path.endswith(".tar"):
            with store.open(file.path) as data, tarfile.open(fileobj=data) as tar:
                count = len(tar.getnames()) / len(LAYER_FILES)
        else:
            count = pq.read_metadata(store.arrow_source(file.path)).num_rows
        if count != file.samples:
            yield f"{file.path}: {count:g} samples, the manifest says {file.samples}"


def _check_index(dataset: Dataset, split: str) -> Iterator[str]:
    """Compares the counts of the index with the manifest."""
    manifest, rows = dataset.manifest, list(dataset.index(split))
    statuses = Counter(row["status"] for row in rows)
    counted = {
        "listed": sum((row["object"] or 0) <= 1 for row in rows),
        **({"objects": len(rows)} if "objects" in manifest.images[split] else {}),
        "accepted": statuses.pop(ACCEPTED, 0),
        "rejected": statuses.total(),
        "selected": sum(row["selected"] for row in rows),
    }
    for name, count in counted.items():
        stated = manifest.images[split][name]
        if stated != count:
            yield f"index of {split}: {count} images {name}, the manifest says {stated}"
    if statuses != manifest.rejections[split]:
        stated_reasons = manifest.rejections[split]
        yield f"index of {split}: rejections {statuses}, the manifest says {stated_reasons}"


def _check_samples(dataset: Dataset, split: str) -> Iterator[str]:
    """Checks every variant in every format.

    The keys must be those that the index selects, in its order and with its labels and backgrounds,
    and as many as the manifest says.
    """
    names, manifest = dataset.taxonomy.names, dataset.manifest
    stated = {file.path: file.samples for file in manifest.files}
    totals: Counter[str] = Counter()
    for shard in dataset.shards(split):
        chosen = [row for row in dataset.index_of_shard(split, shard) if row["selected"]]
        totals.update(names[row["label"]] for row in chosen)
        for variant in dataset.variants:
            expected = [
                (row["key"], row["label"], row["wnid"], row.get(f"{variant}_bg_key"))
                for row in chosen
            ]
            for path, read in _files(dataset, split, shard, variant):
                actual = [
                    (s.key, s.fields["label"], s.fields["wnid"], s.fields["bg_key"])
                    for s in read(dataset.store, path)
                ]
                if stated.get(path, 0) != len(actual):
                    yield f"{path}: {len(actual)} samples, the manifest says {stated.get(path, 0)}"
                if len(actual) != len(expected):
                    yield f"{path}: {len(actual)} samples, the index selects {len(expected)}"
                elif actual != expected:
                    key = next(e[0] for e, f in zip(expected, actual, strict=True) if e != f)
                    yield f"{path}: differs from the index at {key}"
    counted = {name: totals[name] for name in names}
    for variant in dataset.variants:
        named = manifest.samples[split].get(str(variant), {})
        if named != counted:
            yield f"{variant} of {split}: {counted} samples, the manifest says {named}"


def _files(
    dataset: Dataset, split: str, shard: int, variant: VariantName
) -> Iterator[tuple[str, Callable[[Store, str], Iterator[Sample]]]]:
    """Yields the files of a variant's shard, each with its reader."""
    formats, count = dataset.manifest.config.compose.formats, dataset.manifest.shards[split].output
    for path in sample_files([variant], formats, split, shard, count):
        yield path, read_webdataset if path.endswith(".tar") else read_parquet
