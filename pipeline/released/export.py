"""Export: writes a split of a dataset in the released layout, one file for each picture.

A picture is `<variant>/<split>/<NN_class>/<wnid>_<number>.JPEG`. In mixed versions the file name is
`fg_<wnid>_<number>_bg_<wnid>_<number>.JPEG`; masks, in `fg_mask/`, end in `.npy`.

A record for each shard lists its files; a note at the root, written last, marks the export as
complete.

The table to fill with answers has a row for each picture that models are evaluated on;
`answers:FILE` of `--models` reads it then. A Parquet file holds the pictures; a CSV names each by
its path in an export.
"""

import contextlib
import dataclasses
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import pyarrow as pa
import pyarrow.csv

from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.dataset.records import Row, bucket_hash, read_metadata, read_rows, write_table
from pipeline.dataset.sinks import Sample
from pipeline.errors import UsageError, counted
from pipeline.evaluate.predictions import evaluated_variants
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress
from pipeline.storage.files import absolute
from pipeline.storage.interface import read_ahead
from pipeline.storage.state_files import (
    csv_bytes,
    guarded,
    json_bytes,
    parquet_writer,
    read_json,
)
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.codec import decode_mask, encode_npy
from transforms.hashing import fingerprint
from transforms.variants import VARIANTS, VariantName

UNKNOWN_BACKGROUND = "unknown"
"""Stands for an unknown background in the name of a mixed picture."""

_SINGLE = re.compile(r"(?P<stem>(?P<wnid>n\d{8})_[^/]+)")
_MIXED = re.compile(r"fg_(?P<stem>(?P<wnid>n\d{8})_[^/]+?)_bg_(?P<background>[^/]+)")
_CLASS = re.compile(r"(\d{2,})_.+")


def class_folder(label: int, name: str, num_labels: int) -> str:
    """Returns the name of a superclass's folder; these names sort in the order of labels.

    >>> class_folder(2, "wheeled vehicle", 9), class_folder(2, "fern", 101)
    ('02_wheeled vehicle', '002_fern')
    """
    digits = max(2, len(str(num_labels - 1)))
    return f"{label:0{digits}d}_{name}"


def label_of_folder(folder: str) -> int | None:
    """Returns the label of a class folder; None if the name is not a class folder's."""
    match = _CLASS.fullmatch(folder)
    return int(match[1]) if match else None


def stem_of(key: str, wnid: str, clashes: frozenset[str] = frozenset()) -> str:
    """Returns the released name of an image, without suffix; a key of this form is kept.

    For other keys without a number, or in `find_clashes`, a hash takes the number's place.

    >>> stem_of("ILSVRC2012_val_00000293", "n02084071"), stem_of("n02084071_7", "n02084071")
    ('n02084071_00000293', 'n02084071_7')
    """
    if re.fullmatch(rf"{re.escape(wnid)}_\d+", key):
        return key
    number = re.search(r"\d+$", key)
    if number is None or key in clashes:
        return f"{wnid}_{bucket_hash(key)}"
    return f"{wnid}_{number[0]}"


def find_clashes(images: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Finds the keys of a split's (key, wnid) that would share a released name."""
    keys = defaultdict(list)
    for key, wnid in images:
        keys[stem_of(key, wnid)].append(key)
    return frozenset(key for same in keys.values() if len(same) > 1 for key in same)


def parse_name(name: str, *, is_mixed: bool) -> tuple[str, str, str | None] | None:
    """Parses a file name without suffix into stem, wnid and, if mixed, the background's stem.

    That is None if the name says that it is unknown. Returns None for any other name.

    >>> parse_name("fg_n02084071_1_bg_n01503061_2", is_mixed=True)
    ('n02084071_1', 'n02084071', 'n01503061_2')
    """
    match = (_MIXED if is_mixed else _SINGLE).fullmatch(name)
    if match is None:
        return None
    background = match["background"] if is_mixed else UNKNOWN_BACKGROUND
    return match["stem"], match["wnid"], None if background == UNKNOWN_BACKGROUND else background


EXPORT_VERSION = 2
"""Raised by hand whenever new code would write different files for the same dataset."""
EXPORT_FOLDER = f"{WORK_FOLDER}/export"
"""Holds the records of an export."""

FORMAT = "imagenet9-export"

_AT_ONCE = 64
"""Number of files that are written at a time, in parallel if the target is remote."""

TABLE_SUFFIXES = (".csv", ".parquet")

_ROWS_AT_ONCE = 256
"""Number of rows of the table that are written at a time, with some megabytes of pictures."""

_RECORD_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("stem", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("wnid", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("bg_key", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """What to export of a split, and where to write it.

    Attributes:
      variants: variants to export; without any, what an earlier export wrote is removed.
      total: number of files.
      records: folder of the records; each layout has its own.
      note: path of the file that marks the export as complete.
      chosen: keys of a variant's pictures to export, each with its cells of a table; all pictures
        of a variant that has no entry.
      choice: fingerprint of `chosen`.
    """

    dataset: Dataset
    split: str
    target: Store
    clashes: frozenset[str]
    progress: Progress
    variants: tuple[VariantName, ...] = ()
    total: int = 0
    records: str = EXPORT_FOLDER
    note: str = ""
    chosen: Mapping[VariantName, Mapping[str, Row]] = dataclasses.field(default_factory=dict)
    choice: str = ""

    @classmethod
    def of(cls, dataset: Dataset, split: str, target: Store) -> Self:
        """Plans the export of a whole split in the released layout."""
        images = [(row["key"], row["wnid"]) for row in selected_rows(dataset, split)]
        return cls(
            dataset,
            split,
            target,
            find_clashes(images),
            Progress.for_store(target),
            dataset.variants,
            total=len(images) * len(dataset.variants),
            note=f"export-{split}.json",
        )

    @property
    def source(self) -> str:
        """Path of the note that says which dataset a folder holds the export of."""
        return f"{self.records}/source.json"

    @property
    def shards(self) -> range:
        return self.dataset.shards(self.split) if self.variants else range(0)

    def record(self, shard: int) -> str:
        """Returns the path of a shard's record, another for another state of the dataset.

        So what an earlier export wrote stays known until `_sweep` has removed it, even if this
        export is killed; but not what it wrote of a shard in whose middle it was killed.
        """
        files = self.dataset.shard_files(self.split, shard, self.variants)
        names = [self.dataset.taxonomy.names, sorted(self.clashes)]
        checksum = fingerprint(
            EXPORT_VERSION,
            list(map(str, self.variants)),
            [file.sha256 for file in files],
            names,
            *filter(None, [self.choice]),
        )
        return f"{self.records}/{self.split}-{shard:05d}-{checksum}.parquet"

    def path(self, variant: VariantName, sample: Sample) -> str:
        fields = sample.fields
        name = stem_of(sample.key, fields["wnid"], self.clashes)
        if variant.has_draws:
            key, wnid = fields["bg_key"], fields["bg_wnid"]
            # A scene has no class, and keeps its name.
            background = stem_of(key, wnid, self.clashes) if wnid else key
            name = f"fg_{name}_bg_{background or UNKNOWN_BACKGROUND}"
        suffix = "JPEG" if variant.is_picture else "npy"
        return f"{self.folder(variant, fields['label'])}/{name}.{suffix}"

    def folder(self, variant: VariantName, label: int) -> str:
        names = self.dataset.taxonomy.names
        return f"{variant}/{self.split}/{class_folder(label, names[label], len(names))}"


def take_folder(plan: ExportPlan, folder: str) -> None:
    """Notes that a folder is the export of a dataset, before its first file is written.

    The user named the dataset's folder, or that of its published versions. Raises UsageError if the
    folder holds the export of another dataset. One that has changed is the same if it lies where it
    was.
    """
    target = plan.target
    new = {"dataset": plan.dataset.manifest.fingerprint, "folder": absolute(folder)}
    old = read_json(target, plan.source, dict[str, str])
    if old and not old.items() & new.items():
        raise UsageError(
            f"--to {target.root} holds the export of dataset {old['dataset'][:12]}, and "
            f"{folder} is {new['dataset'][:12]}; choose another folder"
        )
    target.update(plan.source, json_bytes(new))


def export_split(job: ExportPlan) -> tuple[int, int, list[str]]:
    """Writes the missing files of an export, and removes obsolete files of an earlier export.

    Returns (number of files written, number of files removed, paths of files that no export wrote
    and that readers take for pictures).
    """
    export_shard = functools.partial(_export_shard, job)
    written = sum(files for _, files in read_ahead(export_shard, job.shards, usable_cores()))
    wanted = {row["path"] for row in exported_rows(job)}
    return written, *_sweep(job, wanted, set(map(job.record, job.shards)))


def exported_rows(job: ExportPlan) -> Iterator[Row]:
    """Yields a row for each exported file, in the order of shards and variants."""
    return (row for shard in job.shards for row in read_rows(job.target, job.record(shard)))


def _export_shard(job: ExportPlan, shard: int) -> int:
    """Writes the files of an output shard unless they exist; returns how many it wrote."""
    record = job.record(shard)
    count = _count_existing(job.target, record)
    written = 0
    if count is None:
        job.target.delete(job.note)
        rows = list(_write(job, shard))
        write_table(job.target, record, pa.Table.from_pylist(rows, _RECORD_SCHEMA), "")
        count = written = len(rows)
    job.progress.note_done("export", f"{job.split}-{shard:05d}", count)
    return written


def _count_existing(target: Store, record: str) -> int | None:
    """Counts a shard's exported files; None unless the record and all of them exist."""
    if read_metadata(target, record) is None:
        return None
    rows = read_rows(target, record, ["path", "bytes"])
    sizes = target.sizes_of([row["path"] for row in rows])
    return len(rows) if sizes == [row["bytes"] for row in rows] else None


def _write(job: ExportPlan, shard: int) -> Iterator[dict[str, object]]:
    for variant in job.variants:
        keys = job.chosen.get(variant)
        with contextlib.closing(job.dataset.samples(job.split, shard, variant)) as samples:
            wanted = (each for each in samples if keys is None or each.key in keys)
            while batch := list(itertools.islice(wanted, _AT_ONCE)):
                with job.target.together() as target:
                    yield from [_write_one(job, target, variant, sample) for sample in batch]


def _write_one(
    job: ExportPlan, target: Store, variant: VariantName, sample: Sample
) -> dict[str, object]:
    path = job.path(variant, sample)
    data = sample.image if variant.is_picture else encode_npy(decode_mask(sample.image))
    target.write(path, data)
    return {
        "path": path,
        "bytes": len(data),
        "variant": str(variant),
        "stem": stem_of(sample.key, sample.fields["wnid"], job.clashes),
        "key": sample.key,
        "wnid": sample.fields["wnid"],
        "label": sample.fields["label"],
        "bg_key": sample.fields["bg_key"],
    }


def write_note(plans: Sequence[ExportPlan]) -> list[str]:
    """Writes the table of images and, last, the note of an export in the released layout.

    Returns a line that says what it holds.
    """
    (job,) = plans
    target, variants = job.target, job.dataset.variants
    images: dict[str, dict[str, object]] = {}
    for row in exported_rows(job):
        image = images.setdefault(
            row["key"], {name: row[name] for name in ("stem", "key", "wnid", "label")}
        )
        if (variant := VariantName.parse(row["variant"])).has_draws:
            image[f"{variant.pairs}_bg_key"] = row["bg_key"]
    # Readers of an export number its class folders, so classes without images need a folder, too.
    present = {row["label"] for row in images.values()}
    for label in set(range(job.dataset.taxonomy.num_labels)) - present:
        for variant in variants:
            target.make_folder(job.folder(variant, label))
    mixed = dict.fromkeys(f"{name.pairs}_bg_key" for name in variants if name.has_draws)
    rows = sorted(images.values(), key=lambda row: str(row["stem"]))
    columns = ("stem", "key", "wnid", "label", *mixed)
    target.update(f"images-{job.split}.csv", csv_bytes(columns, rows))
    note = {
        "format": FORMAT,
        "format_version": EXPORT_VERSION,
        "dataset": job.dataset.manifest.fingerprint,
        "split": job.split,
        "variants": list(map(str, variants)),
        "images": len(rows),
        "files": len(rows) * len(variants),
    }
    target.update(job.note, json_bytes(note))
    return [f"{job.split}: {counted(len(rows), 'image')}, {counted(len(variants), 'variant')}"]


def _sweep(job: ExportPlan, wanted: set[str], records: set[str]) -> tuple[int, list[str]]:
    """Removes files of the split that an earlier export wrote and that are not part of this one.

    Returns (number of pictures and masks removed, sorted paths of the other files in the folders of
    every variant of this project or of the dataset).
    """
    target = job.target
    variants = {
        *map(VariantName.parse, VARIANTS),
        *(name.variant for name in job.dataset.variants),
    }
    files = target.sizes("")
    beginning = f"{job.records}/{job.split}-"
    stale = {path for path in files if path.startswith(beginning)} - records
    intact = [path for path in stale if read_metadata(target, path)]
    listed = {row["path"] for path in intact for row in read_rows(target, path, ["path"])}
    obsolete = (listed & files.keys()) - wanted
    strangers = sorted(
        path
        for path in files.keys() - wanted - obsolete
        for folder, _, inner in [path.partition("/")]
        if inner.startswith(f"{job.split}/") and VariantName.parse(folder).variant in variants
    )
    target.delete_all(obsolete)
    kept = {path.partition("/")[0] for path in files.keys() - obsolete}
    for variant in {path.partition("/")[0] for path in obsolete}:
        # Other splits need their empty class folders.
        target.prune(f"{variant}/{job.split}" if variant in kept else variant)
    target.delete_all(stale)
    return len(obsolete), strangers


def write_answer_table(plan: ExportPlan, name: str) -> int:
    """Writes the table, named by one of `TABLE_SUFFIXES`; returns its number of rows."""
    dataset, with_pixels = plan.dataset, name.endswith(".parquet")
    picture = ("image", pa.binary()) if with_pixels else ("path", pa.string())
    columns = [("key", pa.string()), ("variant", pa.string()), picture, ("dataset", pa.string())]
    schema, shards = pa.schema(columns), dataset.shards(plan.split)
    make, as_text = (parquet_writer, str) if with_pixels else (pyarrow.csv.CSVWriter, guarded)
    with plan.target.create(name) as file, make(file, schema) as writer:
        for variant, shard in itertools.product(evaluated_variants(dataset), shards):
            with contextlib.closing(dataset.samples(plan.split, shard, variant)) as samples:
                while batch := list(itertools.islice(samples, _ROWS_AT_ONCE)):
                    rows = {
                        "key": [as_text(sample.key) for sample in batch],
                        "variant": [str(variant)] * len(batch),
                        picture[0]: [
                            sample.image if with_pixels else plan.path(variant, sample)
                            for sample in batch
                        ],
                        "dataset": [dataset.manifest.fingerprint] * len(batch),
                    }
                    writer.write_table(pa.table(rows, schema))
    return sum(dataset.pictures(plan.split, shard) for shard in shards)
