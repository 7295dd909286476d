"""Files by absolute path: of this machine, or of Google Cloud Storage (`gs://bucket/name`).

A path tells which; `file_kind` says what both do.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
from typing import BinaryIO

from pipeline.errors import UsageError
from pipeline.storage.file_kind import Files

_REMOTE = "gs://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_remote(path: str) -> bool:
    """Whether a path is of Google Cloud Storage."""
    return path.startswith(_REMOTE)


def absolute(path: str) -> str:
    """What a user typed, as an absolute path without a slash at its end.

    Raises:
      UsageError: it is an address of a storage that there is no way to, or names no bucket.
    """
    if not is_remote(path):
        scheme = _SCHEME.match(path)
        if scheme:
            raise UsageError(f"{path}: {scheme[0]} is not supported; give a local path, or gs://")
        # Shells leave the ~ of --output=~/out to us.
        return os.path.abspath(os.path.expanduser(path))
    bucket, _, name = path.removeprefix(_REMOTE).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{path} names no bucket; give gs://BUCKET/NAME")
    return _REMOTE + posixpath.join(bucket, posixpath.normpath(name) if name.strip("/") else "")


def join(folder: str, *names: str) -> str:
    """Path of something below a folder."""
    return posixpath.join(folder, *names) if is_remote(folder) else os.path.join(folder, *names)


def parent(path: str) -> str:
    """The folder that something lies in; a bucket is its own."""
    if not is_remote(path):
        return os.path.dirname(path)
    folder = posixpath.dirname(path)
    return folder if len(folder) > len(_REMOTE) else path


def relative(path: str, folder: str) -> str:
    """Path of something below a folder as seen from there, with forward slashes."""
    if is_remote(folder):
        return posixpath.relpath(path.removeprefix(_REMOTE), folder.removeprefix(_REMOTE))
    return os.path.relpath(path, folder).replace(os.sep, "/")


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder itself, or lies in it."""
    if is_remote(path) != is_remote(folder):
        return False
    if not is_remote(path):
        path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def files_of(path: str) -> Files:
    """The storage that a path belongs to."""
    return _remote_files() if is_remote(path) else _local_files()


def arrow_source(path: str) -> str | BinaryIO:
    """What pyarrow reads a file from: its path if it is of this machine, and in UTF-8. A folder's
    name may be in another encoding, and in the C locale no letter beyond ASCII is decoded. Raises
    OSError or JobError if it cannot be read."""
    file = files_of(path).open(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        return file
    if is_remote(path):
        return file
    file.close()  # It is a file that can be read; Arrow would wait for a pipe.
    return path


@functools.cache
def _local_files() -> Files:
    from pipeline.storage.local_files import LocalFiles

    return LocalFiles()


@functools.cache
def _remote_files() -> Files:
    from pipeline.storage.gcs_files import GcsFiles  # Takes a second to import.

    return GcsFiles()
