"""Decodes and checks every picture of an archive's shard, and writes the imported output shards.

The published pixels stay unchanged. The release does not reliably name the true backgrounds of
mixed pictures, so they are searched for among the tiled backgrounds of the whole split, the pool.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import shlex
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import (
    ACCEPTED,
    Row,
    Staging,
    bucket_hash,
    index_file,
    read_rows,
)
from pipeline.dataset.sinks import (
    SAMPLE_FIELDS,
    Sample,
    Sink,
    digests_of,
    open_sinks,
    sample_schema,
)
from pipeline.errors import UsageError
from pipeline.generate.compose import index_schema
from pipeline.generate.shard_elements import OutputShard
from pipeline.released.archive_listing import (
    ArchiveLocation,
    ReleasedImage,
    ReleasedShard,
    find_pictures,
    read_contents,
)
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress, count_shard
from pipeline.storage.interface import read_ahead
from pipeline.storage.store import FileDigest
from transforms.codec import (
    TooManyPixelsError,
    UndecodableError,
    decode_image,
    decode_npy,
    encode_png,
)
from transforms.filters import Reason, is_valid_key
from transforms.geometry import Mask
from transforms.hashing import fingerprint
from transforms.limits import Unread
from transforms.matching import block_means, block_means_outside, compare, decide, nearest
from transforms.taxonomy import Taxonomy
from transforms.variants import MASK, ONLY_BG_T, ORIGINAL, VariantName


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """What to import, and where to write it."""

    config: DatasetConfig
    staging: Staging
    taxonomy: Taxonomy
    progress: Progress


@dataclasses.dataclass(frozen=True)
class ExaminedShard:
    """A shard after examination, with a row for each image, in order of their keys.

    A row has columns of the index; `content`, a hash of all files of the image; `background`, a
    hash of its `only_bg_t`; and `description`, what `block_means` returns for its `only_bg_t`, 3
    bytes for each block of 8 x 8 pixels, or None without that.
    """

    listed: ReleasedShard
    rows: list[Row]


def examine_shard(job: ImportPlan, shard: ReleasedShard) -> ExaminedShard:
    """Examines every picture of a shard."""
    read = functools.partial(read_image, variants=job.config.compose.composed)
    ahead = job.staging.store.files.requests_at_once
    rows = [_examine_image(job.config, *pair) for pair in read_ahead(read, shard.images, ahead)]
    job.progress.note_done("examine", f"{shard.totals.split}-{shard.shard:05d}", len(shard.images))
    return ExaminedShard(shard, rows)


def _examine_image(
    config: DatasetConfig, image: ReleasedImage, contents: dict[VariantName, bytes]
) -> Row:
    """Examines an image; returns its row."""
    row: Row = {
        "key": image.stem,
        "path": next(iter(image.files.values())).place.name,
        "wnid": image.wnid,
        "label": image.label,
        "status": ACCEPTED,
        "content": _identity(*(contents[name] for name in sorted(contents, key=str))),
        "background": _identity(contents.get(ONLY_BG_T, b"")),
        "description": None,
    }
    fault = _fault_of_names(config, image)
    if fault is None:
        fault, columns = check_pictures(contents, config.segment.image_size)
        row |= columns
    if fault is not None:
        row["status"], row["detail"] = str(fault[0]), fault[1]
    return row


def _fault_of_names(config: DatasetConfig, image: ReleasedImage) -> tuple[Reason, str] | None:
    if not is_valid_key(image.stem):
        return Reason.INVALID_KEY, "a key is printable, without dots, at most 200 bytes long"
    if double := [name for name, file in image.files.items() if file.double]:
        return Reason.DUPLICATE_KEY, f"two files for it in {', '.join(map(str, double))}"
    if missing := [name for name in config.compose.composed if name not in image.files]:
        return Reason.EXCLUDED, f"not in {', '.join(map(str, missing))}"
    return None


def read_image(image: ReleasedImage, variants: Iterable[VariantName]) -> dict[VariantName, bytes]:
    """Reads an image's files, by version. Raises OSError if one cannot be read."""
    present = [name for name in variants if name in image.files]
    return dict(zip(present, read_contents([image.files[n].place for n in present]), strict=True))


def check_pictures(
    contents: dict[VariantName, bytes], size: int
) -> tuple[tuple[Reason, str] | None, Row]:
    """Decodes all files of an image, by version, and checks that they have this side in pixels.

    Returns ((reason, detail) of the first fault, or None; columns of the image's row, as far as the
    files up to the fault give them: width and height of the original, fg_fraction, and the
    description of the tiled background).
    """
    columns: Row = {}
    for variant, data in contents.items():
        try:
            if isinstance(data, Unread):
                raise UndecodableError(data.decode())
            if variant.is_picture:
                suffix_of(data)
                pixels = decode_image(data)
                height, width = pixels.shape[:2]
            else:
                mask = decode_npy(data)
                height, width = mask.shape
                columns["fg_fraction"] = float(mask.mean()) if mask.size else 0.0
        except UndecodableError as error:
            return (Reason.UNDECODABLE, f"{variant}: {error}"), columns
        except TooManyPixelsError as error:
            return (Reason.TOO_MANY_PIXELS, f"{variant}: {error}"), columns
        if variant == ORIGINAL:
            columns |= {"width": width, "height": height}
        if (width, height) != (size, size):
            return (Reason.SIZE_MISMATCH, f"{variant}: {width} x {height} pixels"), columns
        if variant == ONLY_BG_T:
            columns["description"] = block_means(pixels).tobytes()
    return None, columns


def suffix_of(data: bytes) -> str:
    """Returns `jpg` or `png`, by the content. Raises UndecodableError for anything else."""
    if data.startswith(b"\xff\xd8"):
        return "jpg"
    if data.startswith(b"\x89PNG"):
        return "png"
    raise UndecodableError("neither JPEG nor PNG")


def _identity(*contents: bytes) -> str:
    digests = b"".join(hashlib.sha256(content).digest() for content in contents)
    return hashlib.sha256(digests).hexdigest()[:32]


_CANDIDATES = 4
"""Number of backgrounds that are compared pixel by pixel, besides the background that the picture's
name claims."""


@dataclasses.dataclass(frozen=True, eq=False)
class BackgroundPool:
    """The tiled backgrounds of a split.

    With pictures of 224 pixels a side, a background's description takes 2.4 KB and its
    `ReleasedImage` 4.5 KB; that is 0.3 GB for the 45,405 images of the largest released split.

    `described` are the `block_means` of the N images, (N, B, 3) uint8: mean colours of B blocks.
    """

    images: list[ReleasedImage]
    described: NDArray[np.uint8]
    digest: str

    @classmethod
    def from_shards(cls, examined: Sequence[ExaminedShard]) -> BackgroundPool:
        """Collects the backgrounds of a split's accepted images; empty without `only_bg_t`."""
        listed = {image.stem: image for shard in examined for image in shard.listed.images}
        accepted = [row for shard in examined for row in shard.rows if row["status"] == ACCEPTED]
        rows = [row for row in accepted if row["description"] is not None]
        blocks = [np.frombuffer(row["description"], np.uint8).reshape(-1, 3) for row in rows]
        return cls(
            [listed[row["key"]] for row in rows],
            np.stack(blocks) if blocks else np.empty((0, 0, 3), np.uint8),
            fingerprint([[row["key"], row["background"]] for row in rows]),
        )

    @functools.cached_property
    def position(self) -> dict[str, int]:
        """Position of each key's background in the pool."""
        return {image.stem: i for i, image in enumerate(self.images)}


_AT_ONCE = 16
"""Number of images that are held in memory at a time."""


def imported_index_schema(config: DatasetConfig) -> pa.Schema:
    """Returns the columns of the index: those of any dataset, and three for each mixed variant.

    They are the background that the name claims, and how well the best two backgrounds match.
    """
    types = {"named": pa.string(), "difference": pa.float64(), "next_difference": pa.float64()}
    return pa.schema(
        [
            *index_schema(config.compose),
            *(
                pa.field(f"{variant}_bg_{name}", kind)
                for variant in config.compose.mixed
                for name, kind in types.items()
            ),
        ]
    )


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of a split."""

    job: ImportPlan
    pool: BackgroundPool

    def write(self, examined: ExaminedShard) -> OutputShard:
        """Writes a shard's files unless they exist; may raise OSError."""
        totals, shard = examined.listed.totals, examined.listed.shard
        staging = self.job.staging
        rows = sorted(examined.rows, key=lambda row: (bucket_hash(row["key"]), row["key"]))
        named = {
            image.stem: {str(name): file.named_background for name, file in image.files.items()}
            for image in examined.listed.images
        }
        names = ("key", "path", "status", "content")
        checksum = fingerprint(
            self.job.config.fingerprint(),
            [shard, totals.counts.output],
            [[*(row[name] for name in names), named[row["key"]]] for row in rows],
            self.pool.digest,
        )
        index = index_file(totals.split, shard, totals.counts.output)
        record = staging.find(index, checksum)
        is_new = record is None
        if record is None:
            files = self._write_variants(examined.listed, rows)
            table = pa.Table.from_pylist(rows, imported_index_schema(self.job.config))
            record, rows = staging.write(index, table, checksum, files), table.to_pylist()
        else:
            # Examine's rows lack the columns of backgrounds, so the rows are read from the index.
            rows = read_rows(staging.store, record.path)
            record = staging.with_record(record, index, len(rows))
        count_shard("output_shards", record.files, is_new=is_new)
        self.job.progress.note_done("import", f"{totals.split}-{shard:05d}", len(rows))
        return OutputShard(totals, shard).with_result(record, rows, len(rows))

    def _write_variants(self, shard: ReleasedShard, rows: list[Row]) -> tuple[FileDigest, ...]:
        """Writes all variants; adds `selected` and the columns of the backgrounds to the rows."""
        images = {image.stem: image for image in shard.images}
        for row in rows:
            row["selected"] = row["status"] == ACCEPTED
        selected = iter([row for row in rows if row["selected"]])
        with self.job.staging.store.together() as store, contextlib.ExitStack() as stack:
            sinks = open_sinks(
                stack,
                store,
                self.job.staging,
                variants=self.job.config.compose.composed,
                formats=self.job.config.compose.formats,
                schema=sample_schema(self.job.taxonomy.names),
                split=shard.totals.split,
                shard=shard.shard,
                num_shards=shard.totals.counts.output,
            )
            while batch := list(itertools.islice(selected, _AT_ONCE)):
                self._write_batch(batch, images, sinks)
        return digests_of(sinks)

    def _write_batch(
        self,
        rows: list[Row],
        images: dict[str, ReleasedImage],
        sinks: dict[VariantName, list[Sink]],
    ) -> None:
        contents = [read_image(images[row["key"]], sinks) for row in rows]
        masks = [decode_npy(content[MASK]) for content in contents]
        recovered = self._recover(rows, images, contents, masks)
        for row, content, mask in zip(rows, contents, masks, strict=True):
            for variant, variant_sinks in sinks.items():
                picture = (
                    content[variant]
                    if variant.is_picture
                    else encode_png(mask.astype(np.uint8) * np.uint8(255))
                )
                background = recovered.get((row["key"], variant.pairs))
                sample = self._sample(row, picture, background)
                for sink in variant_sinks:
                    sink.add(sample)

    def _recover(
        self,
        rows: list[Row],
        images: dict[str, ReleasedImage],
        contents: list[dict[VariantName, bytes]],
        masks: list[Mask],
    ) -> dict[tuple[str, VariantName], ReleasedImage]:
        """Finds backgrounds of mixed pictures in the pool; returns certain ones by (key, variant).

        A row gets the name that the picture claims and, unless the mask leaves too few pixels to
        compare, the mean differences outside the mask of the best and the next best background.
        """
        mixed = [
            (row, variant, content[variant], mask)
            for row, content, mask in zip(rows, contents, masks, strict=True)
            for variant in self.job.config.compose.mixed
        ]
        for row, variant, _, _ in mixed:
            row[f"{variant}_bg_named"] = images[row["key"]].files[variant].named_background
        if not mixed or not self.pool.images:
            return {}
        pictures = [decode_image(data) for _, _, data, _ in mixed]
        outside = [
            block_means_outside(p, mask) for p, (*_, mask) in zip(pictures, mixed, strict=True)
        ]
        means, free = (np.stack(parts) for parts in zip(*outside, strict=True))
        near = nearest(self.pool.described, means, free, _CANDIDATES).tolist()
        recovered = {}
        for (row, variant, _, mask), picture, positions in zip(mixed, pictures, near, strict=True):
            named = self.pool.position.get(row[f"{variant}_bg_named"])
            if named is not None and named not in positions:
                positions.append(named)
            backgrounds = [self.pool.images[position] for position in positions]
            tiled = read_contents([image.files[ONLY_BG_T].place for image in backgrounds])
            differences = compare(picture, mask, [decode_image(content) for content in tiled])
            if differences is None:
                continue
            match = decide(differences)
            row[f"{variant}_bg_difference"] = match.difference
            row[f"{variant}_bg_next_difference"] = match.next_difference
            if match.is_sure:
                background = recovered[row["key"], variant] = backgrounds[match.position]
                row[f"{variant}_bg_key"] = background.stem
        return recovered

    def _sample(self, row: Row, picture: bytes, background: ReleasedImage | None) -> Sample:
        return Sample(
            key=row["key"],
            image=picture,
            suffix=suffix_of(picture),
            fields={
                "label": row["label"],
                "wnid": row["wnid"],
                "imagenet_index": self.job.taxonomy.index_of[row["wnid"]],
                "fg_key": row["key"],
                "bg_key": background and background.stem,
                "bg_label": None if background is None else background.label,
                "bg_wnid": background and background.wnid,
                # The release does not include boxes.
                "box": None,
                "fg_fraction": row["fg_fraction"],
            },
        )


def stage_variant(
    dataset: Dataset, variant: VariantName, source: str, staging: Staging
) -> tuple[str, list[FileDigest], int]:
    """Checks and stages pictures from outside as a variant of a dataset; their bytes are kept.

    Returns (`Outside.pictures`, digests of the files, number of pictures with a named background).
    Raises UsageError if a picture is missing or broken, or has another size than the dataset's.
    """
    found = find_pictures(dataset, variant, source, staging.store)
    stage = functools.partial(_stage_shard, dataset, variant, source, staging, found)
    shards = ((split, n) for split in dataset.config.split for n in dataset.shards(split))
    staged = [one for _, one in read_ahead(stage, shards, usable_cores())]
    rows = sorted(row for of_shard, _ in staged for row in of_shard)
    return (
        fingerprint(rows),
        [file for _, of_shard in staged for file in of_shard],
        sum(background is not None for *_, background in rows),
    )


def _stage_shard(
    dataset: Dataset,
    variant: VariantName,
    source: str,
    staging: Staging,
    found: dict[tuple[str, str], tuple[ArchiveLocation, str | None]],
    at: tuple[str, int],
) -> tuple[list[tuple[str, str, str, str | None]], tuple[FileDigest, ...]]:
    """Stages a shard; what its samples say of an image is the same in all variants.

    Returns (split, key, SHA-256 and background of each picture; digests of the files).
    """
    (split, shard), rows, side = at, [], dataset.config.segment.image_size
    with staging.store.together() as store, contextlib.ExitStack() as stack:
        sinks = open_sinks(
            stack,
            store,
            staging,
            variants=[variant],
            formats=dataset.config.compose.formats,
            schema=sample_schema(dataset.taxonomy.names),
            split=split,
            shard=shard,
            num_shards=len(dataset.shards(split)),
        )
        tables = dataset.tables(
            split, shard, dataset.variants[0], ["key", *(field.name for field in SAMPLE_FIELDS)]
        )
        for row in itertools.chain.from_iterable(table.to_pylist() for table in tables):
            place, background = found[split, key := row.pop("key")]
            (data,) = read_contents([place])
            if fault := check_pictures({variant: data}, side)[0]:
                raise UsageError(
                    f"--variant {variant}={source}: {place.name}: {fault[1].partition(': ')[2]}"
                    + (fault[0] == Reason.SIZE_MISMATCH)
                    * f"; to resize a folder: cp -r {shlex.quote(source)} NEW; find NEW -iname "
                    f"'*.*g' -exec mogrify -resize '{side}x{side}!' {{}} +"
                )
            row |= {"bg_key": background, "bg_label": None, "bg_wnid": None}
            rows.append((split, key, hashlib.sha256(data).hexdigest(), background))
            for sink in sinks[variant]:
                sink.add(Sample(key, data, suffix_of(data), row))
    return rows, digests_of(sinks)
