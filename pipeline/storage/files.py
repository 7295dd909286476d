"""Files by absolute path, on this machine or in Google Cloud Storage, and claims on paths.

The path decides which of the two storages is used: `gs://bucket/name`, or this machine, mounted
file systems included. Both implement `pipeline.storage.interface`.

A claim on this machine is a folder:

PATH/<token>/about    the claim's metadata
PATH/<token>/<n>      an empty file, which every renewal renames to the next number

Each step is one rename, which is atomic and succeeds for only one process: a folder replaces
another only if the other is empty, and no two claims have a name in common. So removing a claim,
however late, never touches the next one. A lock file with a fixed name would not be enough, because
another process may replace the file after it was looked at and before it is removed.
"""

import contextlib
import errno
import functools
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from pipeline.errors import JobError, UsageError
from pipeline.storage.interface import MAX_READ_BYTES, Fence, FileInfo, Files, PathClaim, too_large

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""Errors of file systems that cannot make a hard link."""

_NEVER_READ = {
    errno.ELOOP: "its links lead in a circle",
    errno.ENAMETOOLONG: "it is a link to a name that is too long",
}
"""Why a file is found on no machine, by the error of looking for it. All other errors may be a
machine's: a link may lead to a disk that is not mounted (ENOENT, ENOTDIR), rights may be missing
(EACCES), and load (EMFILE) or a failing disk (EIO) may keep a file out of reach."""
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, *_NEVER_READ)
"""Errors that mean that a path leads to no file that this process may use."""
_BLOCKING = dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), "not a file but a device") | {
    stat.S_IFIFO: "not a file but a pipe",
    stat.S_IFSOCK: "not a file but a socket",
}
"""What may block or never end when it is read, by its kind."""

_TOKEN = re.compile("[0-9a-f]{8,64}")
_METADATA = "about"
_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk without room, and of a user who may take no more of it."""
_CLAIMED = (errno.ENOTEMPTY, errno.EEXIST)
"""Errors of a rename to a path that is claimed."""


class LocalFiles(Files):
    """See `Files`."""

    requests_at_once = 0

    def info(self, path: str) -> FileInfo | None:
        try:
            status = os.stat(path)
        except ValueError:  # An impossible name.
            return None
        except OSError as error:
            # A failing disk does not mean that there is no file.
            if error.errno not in _NO_FILE:
                raise
            return None
        return None if stat.S_ISDIR(status.st_mode) else _info(path, _regular(path, status))

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def walk(self, folder: str) -> Iterator[FileInfo]:
        walked = os.walk(folder, onerror=_raise_unless_missing)
        paths = (os.path.join(root, name) for root, _, names in walked for name in names)
        for path in sorted(paths):
            # Another process may remove a file in the meantime.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                yield _info(path, os.stat(path, follow_symlinks=not never_read(path)))

    def file_paths(self, folder: str) -> list[str]:
        return sorted(entry.path for entry in _entries(folder) if leads_to(entry.is_file))

    def folder_names(self, folder: str) -> list[str]:
        return [entry.name for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]

    def read(self, path: str, limit: int | None = MAX_READ_BYTES) -> bytes:
        size = _regular(path, os.stat(path)).st_size
        if limit is not None and size > limit:
            raise too_large(path, size, limit)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read()
        if len(data) != size:  # Some network file systems end a file early when they fail.
            raise OSError(f"{path} gave {len(data)} bytes, of {size}")
        return data

    def open(self, path: str) -> BinaryIO:
        _regular(path, os.stat(path))
        return open(path, "rb")

    def read_ranges(self, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        _regular(path, os.stat(path))
        parts = []
        with open(path, "rb", buffering=0) as file:
            for offset, length in ranges:
                part = os.pread(file.fileno(), length, offset)
                if len(part) != length:
                    raise OSError(f"{path} ends before byte {offset + length}")
                parts.append(part)
        return parts

    @contextlib.contextmanager
    def create(
        self,
        path: str,
        temporary: str,
        deferred: list[Callable[[], object]] | None = None,
        *,
        durable: bool = False,
    ) -> Iterator[BinaryIO]:
        with self._guarded():
            temporary = self._intermediate(temporary)
            try:
                with open(temporary, "wb") as file:
                    # Made only now, because a writer without its claim must not leave folders.
                    _make_folder_of(path)
                    yield cast(BinaryIO, file)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException as error:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(temporary)
                if isinstance(error, OSError) and error.errno in _FULL:
                    # The system's own error names no file.
                    raise OSError(
                        error.errno, f"{os.strerror(error.errno)}; free some space", path
                    ) from error
                raise
        if durable:
            self.sync_folder(os.path.dirname(path))

    def copy(self, source: str, target: str) -> None:
        """Copies a file, as a hard link if possible: files are replaced, and never change."""
        _make_folder_of(target)
        with self._guarded():
            aside = self._intermediate(f"{target}.{os.urandom(16).hex()}")
            try:
                os.link(source, aside)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                shutil.copyfile(source, aside)
            os.replace(aside, target)
        # `os.replace` does nothing, and leaves `aside`, if both names belong to the same file.
        with contextlib.suppress(FileNotFoundError):
            os.remove(aside)

    def move(self, source: str, target: str) -> None:
        _make_folder_of(target)
        with self._guarded():
            self._rename(source, target)

    def sync_folder(self, folder: str) -> None:
        # Some file systems do not support this, and keep names safe in their own way.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def make_folder(self, folder: str) -> None:
        self._check()
        os.makedirs(folder, exist_ok=True)

    def prune(self, folder: str) -> None:
        self._check()
        if os.path.islink(folder):
            return
        for path, _, _ in os.walk(folder, topdown=False):
            # Removing a folder that is not empty fails.
            with contextlib.suppress(OSError):
                os.rmdir(path)

    def delete(self, path: str) -> None:
        self._remove(path, os.remove)

    def delete_tree(self, folder: str) -> None:
        # Of a link only the link, nothing behind it.
        self._remove(folder, os.remove if os.path.islink(folder) else shutil.rmtree)

    def _check(self) -> None:
        """Raises JobError if a claim must be held and is lost."""

    def _guarded(self) -> contextlib.AbstractContextManager[None]:
        """Guards a block in which a missing file may mean that a claim is lost."""
        return contextlib.nullcontext()

    def _intermediate(self, path: str) -> str:
        """Returns the path at which a file waits for its final name, and makes its folder."""
        _make_folder_of(path)
        return path

    def _rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def _remove(self, path: str, remove: Callable[[str], object]) -> None:
        with contextlib.suppress(FileNotFoundError):
            remove(path)

    def claim(self, path: str, token: str, metadata: bytes, temporary: str) -> bool:
        folder = os.path.join(temporary, token)
        os.makedirs(folder)
        try:
            with open(os.path.join(folder, _METADATA), "xb") as file:
                file.write(metadata)
            open(os.path.join(folder, "0"), "xb").close()
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in _CLAIMED:
                raise
            return False
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return True

    def current_claim(self, path: str) -> PathClaim | None:
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise JobError(f"{path} has the name of a lock, but is none; remove it")
            names = os.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        for token in filter(_TOKEN.fullmatch, names):
            try:
                inside = os.listdir(os.path.join(path, token))
                state = next((name for name in inside if name.isdecimal()), "")
                with open(os.path.join(path, token, _METADATA), "rb") as file:
                    return PathClaim(token, file.read(), state)
            except FileNotFoundError:
                # The claim is being removed now, or a power cut has left only a part of it.
                if os.path.isdir(os.path.join(path, token)):
                    return PathClaim(token, b"", "")
                return None
        if names:
            stray = os.path.join(path, names[0])
            raise JobError(f"{stray} does not belong in {path}, which is a lock; remove it")
        # An empty folder is not a claim, but not every file system lets a rename replace it.
        with contextlib.suppress(OSError):
            os.rmdir(path)
        return None

    def renew(self, path: str, claim: PathClaim) -> bool:
        folder = os.path.join(path, claim.token)
        following = str(int(claim.state or 0) + 1)
        try:
            if claim.state:
                os.rename(os.path.join(folder, claim.state), os.path.join(folder, following))
            else:
                open(os.path.join(folder, following), "xb").close()
        except (FileNotFoundError, FileExistsError):
            return False
        return True

    def unclaim(self, path: str, claim: PathClaim, temporary: str) -> bool:
        if self.current_claim(path) != claim:
            return False
        # A renewal between the steps is not seen: the holder stops at its next write.
        os.makedirs(os.path.dirname(temporary), exist_ok=True)
        try:
            os.rename(os.path.join(path, claim.token), temporary)
        except FileNotFoundError:
            return False
        shutil.rmtree(temporary, ignore_errors=True)
        # This fails if the path is claimed again already.
        with contextlib.suppress(OSError):
            os.rmdir(path)
        return True

    def fenced(self, fence: Fence) -> Files:
        return FencedLocalFiles(fence)


class FencedLocalFiles(LocalFiles):
    """Files for the holder of a claim.

    Every file that is written, moved or removed passes through the claim's own folder by an atomic
    rename, which fails once another process has taken the claim over and moved that folder away.
    Check and change are thus a single step, and no process can be suspended between them. They are
    two steps only where that is impossible: for folders, and on file systems without hard links or
    where a rename fails.
    """

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._folder = os.path.join(fence.path, fence.token)

    def _check(self) -> None:
        if not os.path.isdir(self._folder):
            raise self._fence.lost()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            self._check()
            raise

    def _intermediate(self, path: str) -> str:
        return os.path.join(self._folder, f"{os.urandom(16).hex()}.part")

    def _rename(self, source: str, target: str) -> None:
        aside = self._intermediate(source)
        try:
            # A link and not a rename, so that the source stays in place if this process is killed.
            os.link(source, aside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._check()
            os.replace(source, target)
            return
        os.replace(aside, target)
        for name in (aside, source):
            with contextlib.suppress(FileNotFoundError):
                os.remove(name)

    def _remove(self, path: str, remove: Callable[[str], object]) -> None:
        if remove is os.remove and os.path.isdir(path) and not os.path.islink(path):
            # The rename below would take a folder away, too.
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        aside = self._intermediate(path)
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            self._check()
            return
        except OSError as error:
            # For example, a folder in a lower layer of a container image cannot be renamed.
            if error.errno != errno.EXDEV:
                raise
            self._check()
            aside = path
        # If this process is killed here, the next holder removes the file with the claim.
        super()._remove(aside, remove)


def _make_folder_of(path: str) -> None:
    """Makes the folder of a file. Raises NotADirectoryError if a file has the folder's name."""
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:  # Callers would think that `path` itself exists.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from error


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Lists what is directly in a folder; empty if there is no such folder."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return list(entries)


def _raise_unless_missing(error: OSError) -> None:
    """Raises the error of a listing, unless there is no such folder (any more)."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _regular(path: str, status: os.stat_result) -> os.stat_result:
    """Returns the status of a file or folder; raises UsageError for pipes, sockets and devices."""
    if what := _BLOCKING.get(stat.S_IFMT(status.st_mode)):
        raise UsageError(f"{path} is {what}")
    return status


def never_read(path: str) -> str:
    """Returns why no machine can read a file at a path, which is the file's own fault; else ""."""
    try:
        return _BLOCKING.get(stat.S_IFMT(os.stat(path).st_mode), "")
    except OSError as error:
        return _NEVER_READ.get(error.errno or 0, "")


def leads_to(is_kind: Callable[[], bool]) -> bool:
    """Calls `is_dir` or `is_file` of an entry of a folder; returns False if it leads nowhere."""
    try:
        return is_kind()
    except OSError as error:
        if error.errno in (errno.ENOTDIR, *_NEVER_READ):
            return False
        raise


def _info(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(path, status.st_size, str(status.st_mtime_ns), status.st_mtime)


_REMOTE = "gs://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_LOCAL = LocalFiles()


def is_remote(path: str) -> bool:
    """Returns whether a path lies in Google Cloud Storage."""
    return path.startswith(_REMOTE)


def absolute(path: str) -> str:
    """Returns a typed path as an absolute one; only that of a root or bucket ends with a slash.

    Raises UsageError if it is on a storage that is not supported, names no bucket, or is remote and
    not UTF-8.
    """
    if not is_remote(path):
        if scheme := _SCHEME.match(path):
            raise UsageError(f"{path}: {scheme[0]} is not supported; give a local path, or gs://")
        # Shells do not expand the ~ of --output=~/out.
        return os.path.abspath(os.path.expanduser(path))
    if any("\ud800" <= character <= "\udfff" for character in path):
        raise UsageError(f"{path} is not UTF-8, which names in gs:// must be")
    bucket, _, name = path.removeprefix(_REMOTE).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{path} names no bucket; give gs://BUCKET/NAME")
    return _REMOTE + posixpath.join(bucket, posixpath.normpath(f"/{name}").lstrip("/"))


def join(folder: str, *names: str) -> str:
    """Returns the path of something below a folder."""
    return posixpath.join(folder, *names) if is_remote(folder) else os.path.join(folder, *names)


def parent(path: str) -> str:
    """Returns the folder that contains a path; for a bucket, the bucket itself."""
    if not is_remote(path):
        return os.path.dirname(path)
    folder = posixpath.dirname(path)
    return folder if len(folder) > len(_REMOTE) else path


def relative(path: str, folder: str) -> str:
    """Returns a path relative to a folder above it, with forward slashes."""
    if is_remote(folder):
        return posixpath.relpath(path.removeprefix(_REMOTE), folder.removeprefix(_REMOTE))
    return os.path.relpath(path, folder).replace(os.sep, "/")


def is_below(path: str, folder: str) -> bool:
    """Returns whether a path is a folder itself or lies below it."""
    if is_remote(path) != is_remote(folder):
        return False
    if not is_remote(path):
        path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def files_of(path: str) -> Files:
    """Returns the storage that a path belongs to."""
    return _remote_files() if is_remote(path) else _LOCAL


def arrow_source(path: str) -> str | BinaryIO:
    """Returns what pyarrow can read a file from: its path if local and UTF-8, or the opened file.

    A path is not UTF-8 if a folder's name is in another encoding, or if it is not ASCII in the C
    locale. Raises OSError or UsageError if the file cannot be opened.
    """
    file = files_of(path).open(path)
    if is_remote(path) or not path.isprintable():  # Lone surrogates are not printable.
        return file
    file.close()  # Opening the file has ruled out a pipe, on which Arrow would block.
    return path


@functools.cache
def _remote_files() -> Files:
    from pipeline.storage.gcs_files import GcsFiles  # Takes a second to import.

    return GcsFiles()
