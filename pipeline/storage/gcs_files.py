"""Objects of Google Cloud Storage, as files."""

from __future__ import annotations

import base64
import collections
import contextlib
import functools
import io
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from pipeline.errors import JobError
from pipeline.storage.file_kind import (
    MAX_READ_BYTES,
    Fence,
    FileInfo,
    Files,
    PathClaim,
    missing,
    too_large,
)
from pipeline.storage.gcs_requests import IncompleteError, client, translated, tried
from pipeline.storage.parallel import in_parallel

_MEMORY_BYTES = 64 << 20
"""Larger objects are opened in pieces, and written to a disk before they are uploaded."""
_CHUNK_BYTES = 8 << 20
_SPOOLED_BYTES = 1 << 20
"""Of a file being written in memory; a shard's are many."""
_GAP_BYTES = 64 << 10
"""Ranges as near as this are read in one: the time of a request is that of some more bytes."""
_RETRY = DEFAULT_RETRY.with_timeout(300.0).with_delay(initial=0.2, multiplier=2.0, maximum=30.0)
_LOOK_SECONDS = 1.0
_FIELDS = "items(name,size,generation,updated,md5Hash),prefixes,nextPageToken"


class GcsFiles(Files):
    """See `Files`. Raises OSError for whatever fails after its retries."""

    def info(self, path: str) -> FileInfo | None:
        blob = _blob(path)
        try:
            tried(functools.partial(blob.reload, retry=_RETRY), path)
        except FileNotFoundError:
            return None
        return _info(blob)

    def is_folder(self, path: str) -> bool:
        try:
            return next(self._list(path, max_results=1), None) is not None
        except FileNotFoundError:  # No such bucket.
            return False

    def walk(self, folder: str) -> Iterator[FileInfo]:
        return self._list(folder)

    def children(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):  # No such bucket.
            return sorted(info.path for info in self._list(folder, delimiter="/"))
        return []

    def folders(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError), translated(folder):
            blobs = _blobs(folder, delimiter="/")
            collections.deque(blobs.pages, 0)  # Each adds to what the listing has left out.
            return [prefix.split("/")[-2] for prefix in blobs.prefixes]
        return []

    def _list(self, folder: str, **how: Any) -> Iterator[FileInfo]:
        with translated(folder):
            for blob in _blobs(folder, **how):
                if not blob.name.endswith("/"):  # Consoles make such to show empty folders.
                    yield _info(blob)

    def open(self, path: str) -> BinaryIO:
        info = self.info(path)
        if info is None:
            raise missing(path)
        if info.size > _MEMORY_BYTES:
            return cast(BinaryIO, io.BufferedReader(_Ranges(self, info), _CHUNK_BYTES))
        return io.BytesIO(self.read(path, None))

    def read(self, path: str, limit: int | None = MAX_READ_BYTES) -> bytes:
        """A whole object."""
        return self._read(_blob(path), path, limit)

    def _read(self, blob: storage.Blob, path: str, limit: int | None) -> bytes:
        def download() -> bytes:
            file = _Limited(limit)
            blob.download_to_file(file, retry=_RETRY)
            return file.getvalue()

        try:
            return tried(download, path)
        except _FullError:
            info = self.info(path)
            if info is None or limit is None:
                raise missing(path) from None
            raise too_large(path, info.size, limit) from None

    def read_ranges(self, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        spans = _spans([span for span in ranges if span[1]])
        if len(spans) == 1:
            read = [self._range(path, *spans[0])]
        else:
            read = in_parallel(lambda span: self._range(path, *span), spans)
        parts = []
        for offset, length in ranges:
            part = b""
            for (start, end), data in zip(spans, read, strict=True):
                if length and start <= offset < end:
                    part = data[offset - start : offset - start + length]
            parts.append(part)
        return parts

    def _range(self, path: str, start: int, end: int) -> bytes:
        blob = _blob(path)
        download = functools.partial(
            blob.download_as_bytes, start=start, end=end - 1, retry=_RETRY, checksum=None
        )

        def whole() -> bytes:
            data = cast(bytes, download())
            if len(data) != end - start:
                raise IncompleteError(
                    f"{path} gave {len(data)} bytes from {start}, not {end - start}"
                )
            return data

        return tried(whole, path)

    @contextlib.contextmanager
    def create(
        self,
        path: str,
        temporary: str,
        later: list[Callable[[], object]] | None = None,
        *,
        durable: bool = False,
    ) -> Iterator[BinaryIO]:
        """Collects the content on this machine first: an upload that is broken off, or a
        writer that is, must not leave an object that is shorter than it should be."""
        file = cast(BinaryIO, tempfile.SpooledTemporaryFile(_SPOOLED_BYTES))  # noqa: SIM115

        def upload() -> None:
            with file:
                (self._commit if durable else self._upload)(path, file)

        try:
            yield file
        except BaseException:
            file.close()
            raise
        if later is None:
            upload()
        else:
            later.append(upload)

    def _upload(self, path: str, file: BinaryIO, **conditions: int) -> storage.Blob:
        blob = _blob(path)
        blob.chunk_size = _CHUNK_BYTES
        size = file.seek(0, os.SEEK_END)

        def upload() -> storage.Blob:
            file.seek(0)
            blob.upload_from_file(
                file, size=size, checksum="crc32c", timeout=120, retry=_RETRY, **conditions
            )
            return blob

        return tried(upload, path)

    def _commit(self, path: str, file: BinaryIO) -> None:
        """Uploads what says that other files are complete."""
        self._upload(path, file)

    def create_once(self, path: str, data: bytes) -> None:
        self._upload(path, io.BytesIO(data), if_generation_match=0)

    def copy(self, source: str, target: str) -> None:
        to, of = _blob(target), _blob(source)

        def rewrite() -> None:
            token = None
            while True:
                token, _, _ = to.rewrite(of, token=token, timeout=120, retry=_RETRY)
                if token is None:
                    return

        tried(rewrite, source)

    def move(self, source: str, target: str) -> None:
        self.copy(source, target)
        self.delete(source)

    def sync_folder(self, folder: str) -> None:
        """Nothing: an object that is there is on disks."""

    def delete(self, path: str) -> None:
        self._delete(path)

    def _delete(self, path: str, **conditions: int) -> bool:
        blob = _blob(path)
        try:
            tried(functools.partial(blob.delete, retry=_RETRY, **conditions), path)
        except (FileNotFoundError, FileExistsError):
            return False
        return True

    def delete_tree(self, folder: str) -> None:
        # Not what has been written since under the same name.
        in_parallel(
            lambda info: self._delete(info.path, if_generation_match=int(info.identity)),
            self.walk(folder),
        )

    def claim(self, path: str, token: str, about: bytes, temporary: str) -> bool:
        try:
            self.create_once(path, b"%s\n%s" % (token.encode(), about))
        except FileExistsError:
            # Or it was made, and the answer was lost.
            found = self.claimed(path)
            return found is not None and found.token == token
        return True

    def claimed(self, path: str) -> PathClaim | None:
        info = self.info(path)
        if info is None:
            return None
        try:
            token, _, about = self.read(path).partition(b"\n")
        except FileNotFoundError:
            return None
        return PathClaim(token.decode(errors="replace"), about, info.identity)

    def renew(self, path: str, claim: PathClaim) -> bool:
        data = b"%s\n%s" % (claim.token.encode(), claim.about)
        try:
            self._upload(path, io.BytesIO(data), if_generation_match=int(claim.state))
        except (FileNotFoundError, FileExistsError):
            return False
        return True

    def unclaim(self, path: str, claim: PathClaim, temporary: str) -> bool:
        return self._delete(path, if_generation_match=int(claim.state))

    def fenced(self, fence: Fence) -> Files:
        return _fenced(fence)


class FencedGcsFiles(GcsFiles):
    """Objects of the holder of a claim, at which it looks before requests that change something.

    What says that other files are complete is also written only over the object that the holder
    has seen first, or has written. So of two that were suspended between a look and what it was
    for, one writes over what it knows, and the other one is refused. For what is made again by
    the next job a look lasts for a second: it is much, and a claim is taken over after a minute.

    Args:
      fence: what has to be held.
    """

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._looked = -math.inf
        self._known: dict[str, int] = {}

    def _check(self, seconds: float = 0.0) -> None:
        now = time.monotonic()
        if now - self._looked < seconds:
            return
        found = self.claimed(self._fence.path)
        if found is None or found.token != self._fence.token:
            raise self._fence.lost()
        self._looked = now

    def info(self, path: str) -> FileInfo | None:
        info = super().info(path)
        self._known.setdefault(path, 0 if info is None else int(info.identity))
        return info

    def read(self, path: str, limit: int | None = MAX_READ_BYTES) -> bytes:
        blob = _blob(path)
        data = self._read(blob, path, limit)
        self._known.setdefault(path, int(blob.generation))
        return data

    def _upload(self, path: str, file: BinaryIO, **conditions: int) -> storage.Blob:
        self._check(_LOOK_SECONDS)
        blob = super()._upload(path, file, **conditions)
        self._known[path] = int(blob.generation)
        return blob

    def _commit(self, path: str, file: BinaryIO) -> None:
        if path not in self._known:
            self.info(path)
        self._check()
        try:
            self._upload(path, file, if_generation_match=self._known[path])
        except FileExistsError:
            self._check()
            file.seek(0)
            if super().read(path) == file.read():
                return  # It was written, and the answer was lost.
            raise JobError(
                f"{path} has been written by another job meanwhile. Run the same command again"
            ) from None

    def copy(self, source: str, target: str) -> None:
        self._check(_LOOK_SECONDS)
        super().copy(source, target)
        self._known.pop(target, None)

    def _delete(self, path: str, **conditions: int) -> bool:
        self._check()
        done = super()._delete(path, **conditions)
        self._known[path] = 0
        return done


@functools.lru_cache(64)
def _fenced(fence: Fence) -> FencedGcsFiles:
    return FencedGcsFiles(fence)


class _FullError(Exception):
    """More was to be written than may be."""


class _Limited(io.BytesIO):
    """A file in memory that takes so many bytes, any number if None. To ask for an object's size
    first would be one more request for each."""

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any, /) -> int:
        if self._limit is not None and self.tell() + len(data) > self._limit:
            raise _FullError
        return super().write(data)


class _Ranges(io.RawIOBase):
    """A large object, read where it is asked for."""

    def __init__(self, files: GcsFiles, info: FileInfo) -> None:
        self._files = files
        self._info = info
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._info.size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(0, self._info.size - self._at))
        ((data),) = self._files.read_ranges(self._info.path, [(self._at, length)])
        buffer[:length] = data
        self._at += length
        return length


def _spans(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The (start, end) that are worth a request each."""
    spans: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if spans and offset - spans[-1][1] <= _GAP_BYTES:
            spans[-1] = (spans[-1][0], max(spans[-1][1], offset + length))
        else:
            spans.append((offset, offset + length))
    return spans


def _parts(path: str) -> tuple[str, str]:
    bucket, _, name = path.removeprefix("gs://").partition("/")
    return bucket, name


def _blobs(folder: str, **how: Any) -> Any:
    """A listing of all below a folder, as the client gives it."""
    bucket, name = _parts(folder.rstrip("/"))
    prefix = f"{name}/" if name else ""
    return client().list_blobs(bucket, prefix=prefix, fields=_FIELDS, retry=_RETRY, **how)


def _blob(path: str) -> storage.Blob:
    bucket, name = _parts(path)
    return client().bucket(bucket).blob(name)


def _info(blob: storage.Blob) -> FileInfo:
    md5 = blob.md5_hash and base64.b64decode(blob.md5_hash).hex()
    path = f"gs://{blob.bucket.name}/{blob.name}"
    return FileInfo(path, blob.size, str(blob.generation), blob.updated.timestamp(), md5 or None)
