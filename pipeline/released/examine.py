"""Examine: decodes and checks every picture of an archive's shard."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import pyarrow as pa

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import IMPORT_VERSION, fingerprint
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    Row,
    Staging,
    read_rows,
)
from pipeline.released.archive_listing import ReleasedImage, ReleasedShard, read_contents
from pipeline.runtime.progress import Progress
from pipeline.storage.parallel import REQUESTS_IN_FLIGHT, read_ahead
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image, decode_npy
from transforms.filters import Reason, is_valid_key
from transforms.limits import Unread
from transforms.matching import block_means
from transforms.taxonomy import Taxonomy

_RECORD_SCHEMA = pa.schema(
    [
        *(
            RECORD_SCHEMA.field(name)
            for name in (
                *("key", "path", "wnid", "label", "status", "detail", "width", "height"),
                "fg_fraction",
            )
        ),
        pa.field("content", pa.string()),
        pa.field("background", pa.string()),
        pa.field("description", pa.binary()),
    ]
)
"""Columns of Examine's record: some columns of the index; `content`, a hash of all files of the
image; `background`, a hash of its `only_bg_t`; and `description`, what `block_means` returns for
its `only_bg_t`, 3 bytes for each block of 8 x 8 pixels."""


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """What to import, and where to write it.

    Attributes:
      config: configuration of the dataset.
      staging: holds the dataset's files until Commit.
      taxonomy: the dataset's classes.
      progress: notes finished shards.
    """

    config: DatasetConfig
    staging: Staging
    taxonomy: Taxonomy
    progress: Progress


@dataclasses.dataclass(frozen=True)
class ExaminedShard:
    """A shard after examination.

    Attributes:
      listed: the shard, as listed.
      rows: rows of its record, in order of their keys.
    """

    listed: ReleasedShard
    rows: list[Row]


def examine_shard(job: ImportPlan, shard: ReleasedShard) -> ExaminedShard:
    """Examines every picture of a shard, or reads the record of an earlier run.

    Raises:
      OSError: a file cannot be read.
    """
    name = f"{shard.totals.split}-{shard.shard:05d}"
    record = f"examined/{name}.parquet"
    checksum = fingerprint(IMPORT_VERSION, job.config.fingerprint(), shard.fingerprint)
    if job.staging.find(record, checksum) is None:
        table = _examine_images(job, shard)
        job.staging.write(record, table, checksum)
        rows = table.to_pylist()
    else:
        rows = read_rows(job.staging.store, job.staging.staged(record))
    job.progress.note_done("examine", name, len(shard.images))
    return ExaminedShard(shard, rows)


def _examine_images(job: ImportPlan, shard: ReleasedShard) -> pa.Table:
    """Examines a shard's images; returns their rows."""

    def read(image: ReleasedImage) -> dict[str, bytes]:
        return read_image(image, job.config.compose.composed)

    ahead = REQUESTS_IN_FLIGHT * job.staging.store.is_remote
    rows = [_examine_image(job.config, *pair) for pair in read_ahead(read, shard.images, ahead)]
    return pa.Table.from_pylist(rows, _RECORD_SCHEMA)


def _examine_image(config: DatasetConfig, image: ReleasedImage, contents: dict[str, bytes]) -> Row:
    """Examines an image; returns its row."""
    row: Row = {
        "key": image.stem,
        "path": next(iter(image.files.values())).place.name,
        "wnid": image.wnid,
        "label": image.label,
        "status": ACCEPTED,
        "content": _identity(*(contents[name] for name in sorted(contents))),
        "background": _identity(contents.get("only_bg_t", b"")),
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
    double = [name for name, file in image.files.items() if file.double]
    if double:
        return Reason.DUPLICATE_KEY, f"two files for it in {', '.join(double)}"
    missing = [name for name in config.compose.composed if name not in image.files]
    if missing:
        return Reason.EXCLUDED, f"not in {', '.join(missing)}"
    return None


def read_image(image: ReleasedImage, variants: Iterable[str]) -> dict[str, bytes]:
    """Reads an image's files, by version. Raises OSError if one cannot be read."""
    present = [name for name in variants if name in image.files]
    return dict(zip(present, read_contents([image.files[n].place for n in present]), strict=True))


def check_pictures(contents: dict[str, bytes], size: int) -> tuple[tuple[Reason, str] | None, Row]:
    """Decodes all files of an image and checks their sizes.

    Args:
      contents: the encoded files of the image, by version.
      size: side that all of its pictures must have, in pixels.

    Returns:
      ((reason, detail) of the first fault, or None; columns of the image's row, as far as the files
      up to the fault give them: width and height of the original, fg_fraction, and the description
      of the tiled background).
    """
    columns: Row = {}
    for variant, data in contents.items():
        try:
            if isinstance(data, Unread):
                raise UndecodableError(data.decode())
            if variant == "fg_mask":
                mask = decode_npy(data)
                height, width = mask.shape
                columns["fg_fraction"] = float(mask.mean()) if mask.size else 0.0
            else:
                suffix_of(data)
                pixels = decode_image(data)
                height, width = pixels.shape[:2]
        except UndecodableError as error:
            return (Reason.UNDECODABLE, f"{variant}: {error}"), columns
        except TooManyPixelsError as error:
            return (Reason.TOO_MANY_PIXELS, f"{variant}: {error}"), columns
        if variant == "original":
            columns |= {"width": width, "height": height}
        if (width, height) != (size, size):
            return (Reason.SIZE_MISMATCH, f"{variant}: {width} x {height} pixels"), columns
        if variant == "only_bg_t":
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
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]
