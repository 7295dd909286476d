"""Scenes: pictures from outside the dataset, which are the backgrounds of `mixed_external`.

The worker that plans a split examines a folder of pictures (`--backgrounds`), and records the
status of each in `backgrounds/scenes.parquet`, unless that table is up to date.
"""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.dataset.config import ComposeConfig, SegmentConfig
from pipeline.dataset.records import (
    ACCEPTED,
    Record,
    Row,
    Staging,
    read_rows,
)
from pipeline.errors import JobError, UsageError
from pipeline.generate.cut_source import Cutter, SourceBytes, printable
from pipeline.inputs.location import Location, changed, read_location
from pipeline.inputs.source_images import HIDDEN, IMAGE_SUFFIXES
from pipeline.storage.files import files_of, join, relative
from pipeline.storage.interface import FileInfo, read_ahead
from pipeline.storage.state_files import read_intact
from transforms.codec import MAX_PIXELS
from transforms.filters import Reason, is_valid_key
from transforms.geometry import Pixels
from transforms.hashing import fingerprint, text_digest
from transforms.limits import Unread
from transforms.pairing import Pool, pair
from transforms.variants import EXTERNAL, VariantName, with_replicates

SCENES = "backgrounds/scenes.parquet"
"""Path of the table of scenes in the dataset folder."""

_CACHED = 64
"""The most cropped scenes that a worker keeps in memory: 150 kB each at 224 x 224 pixels."""

_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
        pa.field("md5", pa.string(), nullable=False),
    ]
)
"""Columns of the table of scenes. `key` is the file name without its suffix, `path` is relative to
the folder of scenes, and `status` is `accepted` or the reason of the rejection, as for images."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """A file of a folder of scenes, by its path in it with forward slashes; without a class."""

    path: str
    md5: str
    label: ClassVar[None] = None
    wnid: ClassVar[None] = None

    @property
    def key(self) -> str:
        """File name without its suffix."""
        return self.path.rpartition("/")[2].rpartition(".")[0]

    @property
    def layer_digest(self) -> str:
        """Digest that changes with the pixels, as that of an image's layer."""
        return self.md5


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The pictures of a folder of scenes, in order of their paths.

    The folder is not part of the dataset's configuration, because it may move.
    """

    folder: str
    files: tuple[Scene, ...]

    @property
    def summary(self) -> str:
        """Number and digest of the pictures, as recorded in a dataset's configuration."""
        digest = text_digest("".join(f"{file.path}\0{file.md5}\n" for file in self.files))
        return f"{len(self.files)} pictures, sha256 {digest[:16]}"


def list_scenes(folder: str) -> Scenes:
    """Lists the pictures in and below a folder, not hidden ones, nor those behind links to folders.

    Raises UsageError if there is no such folder, or it holds no picture.
    """
    files = files_of(folder)
    if not files.is_folder(folder):
        raise UsageError(
            f"--backgrounds {folder} does not exist, or is not a folder that can be read"
        )
    listed = {relative(info.path, folder): info for info in files.walk(folder)}
    scenes = [
        Scene(path, info.md5 or _md5(info))
        for path, info in sorted(listed.items())
        if path.lower().endswith(IMAGE_SUFFIXES) and not HIDDEN.search(path)
    ]
    if not scenes:
        raise UsageError(
            f"--backgrounds {folder} holds no picture: no file ends with "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    return Scenes(folder, tuple(scenes))


@functools.lru_cache(maxsize=200_000)
def _md5(info: FileInfo) -> str:
    """Returns a file's MD5, cached by `FileInfo`, as a launch lists the folder several times."""
    return _md5_of(read_location(Location(info.path)))


def _md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@dataclasses.dataclass(frozen=True)
class SceneTable:
    """The table of scenes, wherever it lies now: in its final place, or in the staging folder.

    `record` has the form of a shard's; `statuses` are (status, number of files with it), sorted.
    """

    folder: str
    record: Record
    statuses: tuple[tuple[str, int], ...]


def examine_scenes(
    folder: str, summary: str, config: SegmentConfig, staging: Staging
) -> SceneTable:
    """Makes the table of scenes, or finds it if it is up to date.

    A picture that cannot be decoded is rejected. `summary` is `Scenes.summary` at launch. Raises
    UsageError if there is no such folder, it has changed since, or none of its pictures can be a
    background.
    """
    scenes = list_scenes(folder)
    if scenes.summary != summary:
        raise UsageError(f"--backgrounds {folder} has changed since this run was started")
    settings = fingerprint(config.resize, config.image_size, config.crop, MAX_PIXELS)
    checksum = f"{settings}-{fingerprint(summary)}"
    existing, store = staging.find(SCENES, checksum), staging.store
    rows = (
        read_intact(store, existing.path, functools.partial(read_rows, store, existing.path))
        if existing
        else None
    )
    if existing is None or rows is None:
        table = pa.Table.from_pylist(list(_examine(scenes, config)), _SCHEMA)
        record, rows = staging.write(SCENES, table, checksum), table.to_pylist()
    else:
        record = staging.with_record(existing, SCENES, len(rows))
    statuses = Counter(row["status"] for row in rows)
    if not statuses[ACCEPTED]:
        first = rows[0]
        raise UsageError(
            f"no picture in --backgrounds {folder} can be a background: {first['path']} is "
            f"{first['status']} ({first['detail']})"
        )
    return SceneTable(folder, record, tuple(sorted(statuses.items())))


def _cropper(config: SegmentConfig) -> Cutter:
    """Returns what crops scenes, which stay whole as the images of IN-9L do."""
    return Cutter(dataclasses.replace(config, selection="in9l"))


def _examine(scenes: Scenes, config: SegmentConfig) -> Iterator[Row]:
    """Yields the table's rows; of usable files of one key, the lowest path is accepted."""
    cutter, accepted = _cropper(config), set[str]()

    def read(scene: Scene) -> bytes:
        path = join(scenes.folder, scene.path)
        data = read_location(Location(path))
        if _md5_of(data) != scene.md5 and not isinstance(data, Unread):
            raise changed(path)
        return data

    ahead = files_of(scenes.folder).requests_at_once
    for scene, data in read_ahead(read, scenes.files, ahead):
        status, detail = ACCEPTED, None
        if not is_valid_key(scene.key):
            status, detail = str(Reason.INVALID_KEY), "a key is printable, without dots"
        elif printable(scene.path) != scene.path:
            # The table would not tell where the picture is.
            status, detail = str(Reason.INVALID_KEY), "its path is too long, or is not printable"
        elif scene.key in accepted:
            status, detail = str(Reason.DUPLICATE_KEY), "another picture of this name comes first"
        else:
            (cropped,) = cutter.cut(SourceBytes(data, None))
            if cropped.reason is not None:
                status, detail = str(cropped.reason), printable(cropped.detail)
        if status == ACCEPTED:
            accepted.add(scene.key)
        yield {
            "key": printable(scene.key),
            "path": printable(scene.path),
            "status": status,
            "detail": detail,
            "md5": scene.md5,
        }


class DrawnScenes:
    """The accepted scenes, from which backgrounds are drawn.

    `picture` returns a scene, cropped; it caches the last scenes.
    """

    def __init__(
        self, table: SceneTable, staging: Staging, config: SegmentConfig, compose: ComposeConfig
    ) -> None:
        self._folder, self._cutter, self._compose = table.folder, _cropper(config), compose
        rows = read_rows(staging.store, table.record.path)
        self.scenes = [Scene(row["path"], row["md5"]) for row in rows if row["status"] == ACCEPTED]
        # With few scenes, a shard uses each of them many times.
        self.picture = functools.lru_cache(_CACHED)(self._picture)

    def draw(self, keys: list[str]) -> dict[VariantName, list[Scene]]:
        """Draws a scene for each foreground key, for each replicate of `mixed_external`."""
        seed, names = self._compose.seed, [scene.key for scene in self.scenes]
        # All are of one class, as if each foreground were that of the first scene.
        pool = Pool.from_images(names, np.zeros(len(names), np.int64), seed=seed)
        draw = functools.partial(pair, pool, np.zeros(len(keys), np.int64), keys, seed=seed)
        return {
            name: [self.scenes[position] for position in draw(name, own_background=True)]
            for name in with_replicates([EXTERNAL], self._compose.replicates)
        }

    def _picture(self, scene: Scene) -> Pixels:
        """Reads and crops a scene; returns (S, S, 3) uint8 RGB, with pictures of S pixels a side.

        Raises JobError if the scene has changed since it was examined.
        """
        path = join(self._folder, scene.path)
        data = read_location(Location(path))
        (cropped,) = self._cutter.cut(SourceBytes(data, None))
        if cropped.layer is None or _md5_of(data) != scene.md5:
            raise JobError(
                f"{path} has changed since this run was started. Run the same command again"
            )
        return cropped.layer.image
