"""Objects of Google Cloud Storage, as files.

The client library retries transient errors. This module adds repeats of requests whose responses
end early, and an OSError for every failure (UsageError if there are no credentials).
"""

import base64
import collections
import contextlib
import errno
import functools
import io
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

import google.auth.exceptions
import requests.adapters
from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, PreconditionFailed
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY

from pipeline.errors import JobError, UsageError
from pipeline.storage.interface import (
    MAX_READ_BYTES,
    REQUESTS_IN_FLIGHT,
    Fence,
    FileInfo,
    Files,
    PathClaim,
    in_parallel,
    missing,
    too_large,
)
from transforms.hashing import text_bytes

_PAUSES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses in seconds before the attempts at a request whose responses end early."""

T = TypeVar("T")


class IncompleteError(Exception):
    """A response ended early, or its content does not have the announced checksum."""


_clients: dict[int, storage.Client] = {}
_clients_lock = threading.Lock()


def client() -> storage.Client:
    """Returns this process's client; each has its own, as connections do not survive a fork."""
    with _clients_lock:
        if os.getpid() not in _clients:
            try:
                # Objects belong to no project, but without a name the library looks for one.
                new_client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "none"))
            except google.auth.exceptions.DefaultCredentialsError as error:
                raise UsageError(
                    "gs:// needs credentials: gcloud auth application-default login, or "
                    "GOOGLE_APPLICATION_CREDENTIALS"
                ) from error
            # The pool has a connection for every thread of every worker that may send a request.
            adapter = requests.adapters.HTTPAdapter(pool_maxsize=8 * REQUESTS_IN_FLIGHT)
            for scheme in ("http://", "https://"):
                new_client._http.mount(scheme, adapter)
            _clients[os.getpid()] = new_client
        return _clients[os.getpid()]


def with_retries(call: Callable[[], T], path: str) -> T:
    """Calls a function, up to six times, until its response ends in full; may raise OSError."""
    for pause in _PAUSES:
        time.sleep(pause)
        with contextlib.suppress(IncompleteError), translated(path):
            try:
                return call()
            except requests.exceptions.ChunkedEncodingError as error:
                raise IncompleteError(str(error)) from error
    raise ConnectionError(f"{path} could not be read: responses end early or are corrupted")


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """Turns the library's errors into OSErrors, but an incomplete response into IncompleteError."""
    try:
        yield
    except NotFound as error:
        raise missing(path) from error
    except Forbidden as error:
        raise PermissionError(errno.EACCES, error.message, path) from error
    except PreconditionFailed as error:
        raise FileExistsError(f"{path} exists already, or has changed") from error
    except DataCorruption as error:
        raise IncompleteError(str(error)) from error
    except (GoogleAPIError, InvalidResponse, requests.RequestException) as error:
        raise ConnectionError(f"{path}: {type(error).__name__}: {error}") from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise PermissionError(f"{path}: no access: {error}") from error


_MEMORY_BYTES = 64 << 20
"""Size in bytes up to which an opened object is read into memory; a larger one in pieces."""
_CHUNK_BYTES = 8 << 20
_SPOOLED_BYTES = 1 << 20
"""Size in bytes above which a file that is being written moves from memory to disk. The limit is
low, because many files of a shard are written at the same time."""
_GAP_BYTES = 64 << 10
"""Ranges with at most this many bytes between them are read in one request, because a second
request would take more time than these bytes."""
_RETRY = DEFAULT_RETRY.with_timeout(300.0).with_delay(initial=0.2, multiplier=2.0, maximum=30.0)
_CHECK_SECONDS = 1.0
"""Seconds for which a check of the claim stays valid, for files that the next job would make again
anyway. A claim is taken over only after a minute without renewal."""
_FIELDS = "items(name,size,generation,updated,md5Hash),prefixes,nextPageToken"


class GcsFiles(Files):
    """See `Files`. A request that still fails after its retries raises OSError."""

    requests_at_once = REQUESTS_IN_FLIGHT

    def info(self, path: str) -> FileInfo | None:
        blob = _blob(path)
        try:
            with_retries(functools.partial(blob.reload, retry=_RETRY), path)
        except FileNotFoundError:
            return None
        return _info(blob)

    def is_folder(self, path: str) -> bool:
        with contextlib.suppress(FileNotFoundError), translated(path):  # No such bucket.
            # Not `walk`: the object that shows an empty folder comes first, and counts here.
            return next(iter(_blobs(path, max_results=1)), None) is not None
        return False

    def file_paths(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):  # No such bucket.
            return sorted(info.path for info in self.walk(folder, delimiter="/"))
        return []

    def folder_names(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError), translated(folder):
            blobs = _blobs(folder, delimiter="/")
            collections.deque(blobs.pages, 0)  # Each page adds to `prefixes`.
            return [prefix.split("/")[-2] for prefix in blobs.prefixes]
        return []

    def walk(self, folder: str, **options: Any) -> Iterator[FileInfo]:
        with translated(folder):
            for blob in _blobs(folder, **options):
                if not blob.name.endswith("/"):  # Consoles make such objects to show empty folders.
                    yield _info(blob)

    def open(self, path: str) -> BinaryIO:
        info = self.info(path)
        if info is None:
            raise missing(path)
        if info.size > _MEMORY_BYTES:
            return cast(BinaryIO, io.BufferedReader(_Ranges(self, info), _CHUNK_BYTES))
        return io.BytesIO(self.read(path, None))

    def read(self, path: str, limit: int | None = MAX_READ_BYTES) -> bytes:
        return self._read(_blob(path), path, limit)

    def _read(self, blob: storage.Blob, path: str, limit: int | None) -> bytes:
        def download() -> bytes:
            file = _Limited(limit)
            blob.download_to_file(file, retry=_RETRY)
            return file.getvalue()

        try:
            return with_retries(download, path)
        except _FullError:
            info = self.info(path)
            if info is None or limit is None:
                raise missing(path) from None
            raise too_large(path, info.size, limit) from None

    def read_ranges(self, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        spans = _spans([span for span in ranges if span[1]])
        contents = in_parallel(lambda span: self._range(path, *span), spans)
        # A range lies in one span, or is empty.
        return [
            b"".join(
                data[offset - start : offset - start + length]
                for (start, end), data in zip(spans, contents, strict=True)
                if length and start <= offset < end
            )
            for offset, length in ranges
        ]

    def _range(self, path: str, start: int, end: int) -> bytes:
        def download() -> bytes:
            data: bytes = _blob(path).download_as_bytes(
                start=start, end=end - 1, retry=_RETRY, checksum=None
            )
            if len(data) != end - start:
                raise IncompleteError(
                    f"{path} gave {len(data)} bytes from {start}, not {end - start}"
                )
            return data

        return with_retries(download, path)

    @contextlib.contextmanager
    def create(
        self,
        path: str,
        temporary: str,
        deferred: list[Callable[[], object]] | None = None,
        *,
        durable: bool = False,
    ) -> Iterator[BinaryIO]:
        """Uploads the content once it is complete, so that no truncated object can be left."""
        file = cast(BinaryIO, tempfile.SpooledTemporaryFile(_SPOOLED_BYTES))  # noqa: SIM115

        def upload() -> None:
            with file:
                (self._commit if durable else self._upload)(path, file)

        try:
            yield file
        except BaseException:
            file.close()
            raise
        if deferred is None:
            upload()
        else:
            deferred.append(upload)

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

        return with_retries(upload, path)

    def _commit(self, path: str, file: BinaryIO) -> None:
        """Uploads a file whose presence says that other files are complete."""
        self._upload(path, file)

    def copy(self, source: str, target: str) -> None:
        source_blob, target_blob = _blob(source), _blob(target)

        def rewrite() -> None:
            token = None
            while True:
                token, _, _ = target_blob.rewrite(
                    source_blob, token=token, timeout=120, retry=_RETRY
                )
                if token is None:
                    return

        with_retries(rewrite, source)

    def move(self, source: str, target: str) -> None:
        self.copy(source, target)
        self.delete(source)

    def sync_folder(self, folder: str) -> None:
        """Does nothing, because an object is durable once it exists."""

    def make_folder(self, folder: str) -> None:
        """Does nothing, because there are only objects."""

    def prune(self, folder: str) -> None:
        """Does nothing, because there are only objects."""

    def delete(self, path: str) -> None:
        self._delete(path)

    def _delete(self, path: str, **conditions: int) -> bool:
        blob = _blob(path)
        try:
            with_retries(functools.partial(blob.delete, retry=_RETRY, **conditions), path)
        except (FileNotFoundError, FileExistsError):
            return False
        return True

    def delete_tree(self, folder: str) -> None:
        # The generation protects an object that was written under the same name after the listing.
        in_parallel(
            lambda info: self._delete(info.path, if_generation_match=int(info.identity)),
            self.walk(folder),
        )

    def claim(self, path: str, token: str, metadata: bytes, temporary: str) -> bool:
        try:
            data = b"%s\n%s" % (text_bytes(token), metadata)
            self._upload(path, io.BytesIO(data), if_generation_match=0)
        except FileExistsError:
            # If only the response was lost, the existing claim is this one.
            claim = self.current_claim(path)
            return claim is not None and claim.token == token
        return True

    def current_claim(self, path: str) -> PathClaim | None:
        info = self.info(path)
        if info is None:
            return None
        try:
            token, _, metadata = self.read(path).partition(b"\n")
        except FileNotFoundError:
            return None
        return PathClaim(token.decode(errors="replace"), metadata, info.identity)

    def renew(self, path: str, claim: PathClaim) -> bool:
        data = b"%s\n%s" % (text_bytes(claim.token), claim.metadata)
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
    """Objects for the holder of a claim, which is checked before each request that changes objects.

    For an upload or a copy, a check of the last `_CHECK_SECONDS` is enough.

    A process may be suspended between the check and the request. So a file whose presence says that
    other files are complete has a second safeguard: it replaces only the generation that its writer
    saw first, or wrote itself. Of two processes that write the same file, the second is refused.
    """

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._checked = -math.inf
        self._generations: dict[str, int] = {}

    def _check(self, max_age: float = 0.0) -> None:
        """Raises JobError if the claim is lost; trusts a check of the last `max_age` seconds."""
        now = time.monotonic()
        if now - self._checked < max_age:
            return
        claim = self.current_claim(self._fence.path)
        if claim is None or claim.token != self._fence.token:
            raise self._fence.lost()
        self._checked = now

    def info(self, path: str) -> FileInfo | None:
        info = super().info(path)
        self._generations.setdefault(path, 0 if info is None else int(info.identity))
        return info

    def read(self, path: str, limit: int | None = MAX_READ_BYTES) -> bytes:
        blob = _blob(path)
        data = self._read(blob, path, limit)
        self._generations.setdefault(path, int(blob.generation))
        return data

    def _upload(self, path: str, file: BinaryIO, **conditions: int) -> storage.Blob:
        self._check(_CHECK_SECONDS)
        blob = super()._upload(path, file, **conditions)
        self._generations[path] = int(blob.generation)
        return blob

    def _commit(self, path: str, file: BinaryIO) -> None:
        if path not in self._generations:
            self.info(path)
        self._check()
        try:
            self._upload(path, file, if_generation_match=self._generations[path])
        except FileExistsError:
            self._check()
            file.seek(0)
            blob = _blob(path)
            if self._read(blob, path, None) == file.read():
                # The upload succeeded, but its response was lost.
                self._generations[path] = int(blob.generation)
                return
            raise JobError(
                f"{path} has been written by another job meanwhile. Run the same command again"
            ) from None

    def copy(self, source: str, target: str) -> None:
        self._check(_CHECK_SECONDS)
        super().copy(source, target)
        self._generations.pop(target, None)

    def _delete(self, path: str, **conditions: int) -> bool:
        self._check()
        removed = super()._delete(path, **conditions)
        self._generations[path] = 0
        return removed


_fenced = functools.lru_cache(64)(FencedGcsFiles)


class _FullError(Exception):
    """An object has more bytes than the limit for reading it."""


class _Limited(io.BytesIO):
    """A file in memory of at most `limit` bytes, or any if None; saves a request for the size."""

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any, /) -> int:
        if self._limit is not None and self.tell() + len(data) > self._limit:
            raise _FullError
        return super().write(data)


class _Ranges(io.RawIOBase):
    """A large object of which only the requested ranges are read."""

    def __init__(self, files: GcsFiles, info: FileInfo) -> None:
        self._files = files
        self._info = info
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._info.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(0, self._info.size - self._position))
        ((data),) = self._files.read_ranges(self._info.path, [(self._position, length)])
        buffer[:length] = data
        self._position += length
        return length


def _spans(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merges neighbouring ranges (offset, length) into spans (start, end) of one request each."""
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


def _blobs(folder: str, **options: Any) -> Any:
    """Lists everything below a folder, with options of the client's `list_blobs`."""
    bucket, name = _parts(folder.rstrip("/"))
    prefix = f"{name}/" if name else ""
    return client().list_blobs(bucket, prefix=prefix, fields=_FIELDS, retry=_RETRY, **options)


def _blob(path: str) -> storage.Blob:
    bucket, name = _parts(path)
    return client().bucket(bucket).blob(name)


def _info(blob: storage.Blob) -> FileInfo:
    md5 = blob.md5_hash and base64.b64decode(blob.md5_hash).hex()
    path = f"gs://{blob.bucket.name}/{blob.name}"
    return FileInfo(path, blob.size, str(blob.generation), blob.updated.timestamp(), md5 or None)
