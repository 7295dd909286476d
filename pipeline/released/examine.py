"""Examine: looks at every picture of an archive's shard."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import IMPORT_VERSION, fingerprint
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    ShardFiles,
    Staging,
    write_table,
)
from pipeline.released.archive import read_places
from pipeline.released.listing import ReleasedImage, ReleasedShard
from pipeline.released.masks import decode_npy, npy_bytes
from pipeline.runner.counters import count, timed
from pipeline.runner.progress import Progress
from pipeline.storage.files import REQUESTS_IN_FLIGHT, read_ahead
from pipeline.storage.store import FileDigest
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image
from transforms.filters import Reason, is_valid_key
from transforms.matching import describe

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
    ]
)
"""Columns of what Examine found: the index's, and identities of the content of all files of an
image and of its `only_bg_t`."""


@dataclasses.dataclass(frozen=True)
class ExaminedShard:
    """A shard that was looked at.

    Attributes:
      shard: as listed.
      record: where its record lies.
      backgrounds: where the descriptions of its accepted images' backgrounds lie, None if the
        archive has no `only_bg_t`.
    """

    shard: ReleasedShard
    record: str
    backgrounds: str | None


class ExamineShard(beam.DoFn):
    """ReleasedShard -> ExaminedShard."""

    def __init__(self, config: DatasetConfig, staging: Staging, progress: Progress) -> None:
        self._config = config
        self._staging = staging
        self._progress = progress

    def process(self, shard: ReleasedShard) -> Iterator[ExaminedShard]:
        with timed("examine"):
            examined = self._examine(shard)
        yield examined

    def _examine(self, shard: ReleasedShard) -> ExaminedShard:
        name = f"{shard.totals.split}-{shard.shard:05d}"
        record, described = f"examined/{name}.parquet", f"examined/{name}.npy"
        checksum = fingerprint(IMPORT_VERSION, self._config.fingerprint(), shard.fingerprint)
        found = self._staging.find(record, checksum)
        if found is None:
            self._write(shard, record, described, checksum)
        self._progress.note_done("examine", name, len(shard.images))
        has_backgrounds = "only_bg_t" in self._config.compose.variants
        return ExaminedShard(
            shard,
            self._staging.staged(record),
            self._staging.staged(described) if has_backgrounds else None,
        )

    def _write(self, shard: ReleasedShard, record: str, described: str, checksum: str) -> None:
        store = self._staging.store
        variants = self._config.compose.composed
        rows, descriptions = [], []

        def read(image: ReleasedImage) -> dict[str, bytes]:
            return read_image(image, variants)

        ahead = REQUESTS_IN_FLIGHT * store.is_remote
        for image, contents in read_ahead(read, shard.images, ahead):
            row, background = self._look_at(image, contents)
            rows.append(row)
            if background is not None:
                descriptions.append(background)
            count("images_examined")
        files: tuple[FileDigest, ...] = ()
        if "only_bg_t" in variants:
            blocks = np.stack(descriptions) if descriptions else np.empty((0, 0, 3), np.uint8)
            digest = store.write(self._staging.staged(described), npy_bytes(blocks))
            files = (dataclasses.replace(digest, path=described),)
        table = pa.Table.from_pylist(rows, _RECORD_SCHEMA)
        write_table(store, self._staging.staged(record), table, ShardFiles(checksum, files))

    def _look_at(
        self, image: ReleasedImage, contents: dict[str, bytes]
    ) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
        """(row of the record, description of the background if it is accepted)."""
        size = self._config.segment.image_size
        row: dict[str, Any] = {
            "key": image.stem,
            "path": next(iter(image.files.values())).place.name,
            "wnid": image.wnid,
            "label": image.label,
            "status": ACCEPTED,
            "content": _identity(*(contents[name] for name in sorted(contents))),
            "background": _identity(contents.get("only_bg_t", b"")),
        }
        fault = self._fault_of_names(image)
        if fault is None:
            fault, found = check_pictures(contents, size)
            row |= {name: value for name, value in found.items() if name != "description"}
            if fault is None:
                return row, found.get("description")
        row["status"], row["detail"] = str(fault[0]), fault[1]
        return row, None

    def _fault_of_names(self, image: ReleasedImage) -> tuple[Reason, str] | None:
        if not is_valid_key(image.stem):
            return Reason.INVALID_KEY, "a key is printable, without dots, at most 200 bytes long"
        double = [name for name, file in image.files.items() if file.double]
        if double:
            return Reason.DUPLICATE_KEY, f"two files for it in {', '.join(double)}"
        absent = [name for name in self._config.compose.composed if name not in image.files]
        if absent:
            return Reason.EXCLUDED, f"not in {', '.join(absent)}"
        return None


def read_image(image: ReleasedImage, variants: Iterable[str]) -> dict[str, bytes]:
    """Contents of an image's files, by version. Raises OSError."""
    there = [name for name in variants if name in image.files]
    return dict(zip(there, read_places([image.files[n].place for n in there]), strict=True))


def check_pictures(
    contents: dict[str, bytes], size: int
) -> tuple[tuple[Reason, str] | None, dict[str, Any]]:
    """Decodes all files of an image.

    Args:
      contents: by version.
      size: side that all must have, in pixels.

    Returns:
      (fault, if there is one; width, height, fg_fraction, and the description of the tiled
      background).
    """
    found: dict[str, Any] = {}
    for variant, data in contents.items():
        try:
            if variant == "fg_mask":
                mask = decode_npy(data)
                height, width = mask.shape
                found["fg_fraction"] = float(mask.mean()) if mask.size else 0.0
            else:
                suffix_of(data)
                pixels = decode_image(data)
                height, width = pixels.shape[:2]
        except UndecodableError as error:
            return (Reason.UNDECODABLE, f"{variant}: {error}"), found
        except TooManyPixelsError as error:
            return (Reason.TOO_MANY_PIXELS, f"{variant}: {error}"), found
        if variant == "original":
            found |= {"width": width, "height": height}
        if (width, height) != (size, size):
            return (Reason.SIZE_MISMATCH, f"{variant}: {width} x {height} pixels"), found
        if variant == "only_bg_t":
            found["description"] = describe(pixels)
    return None, found


def suffix_of(data: bytes) -> str:
    """`jpg` or `png`, by the content. Raises UndecodableError for anything else."""
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
