"""Files by absolute path, on this machine or in Google Cloud Storage (`gs://bucket/name`).

The path decides which of the two storages is used. Both implement the interface in `file_kind`.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
from typing import BinaryIO

from pipeline.errors import UsageError
from pipeline.storage.file_kind import Files
from pipeline.storage.local_files import LocalFiles

_REMOTE = "gs://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_LOCAL = LocalFiles()


def is_remote(path: str) -> bool:
    """Returns whether a path lies in Google Cloud Storage."""
    return path.startswith(_REMOTE)


def absolute(path: str) -> str:
    """Returns a path that a user typed as an absolute path. Only the root of a file system or
    bucket ends with a slash.

    Raises:
      UsageError: the path is on a storage that is not supported, names no bucket, or is remote and
        not UTF-8.
    """
    if not is_remote(path):
        scheme = _SCHEME.match(path)
        if scheme:
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
    """Returns what pyarrow can read a file from: its path if it is local and valid UTF-8, otherwise
    the opened file. A path is not valid UTF-8 if a folder's name is in another encoding, or if it
    has other characters than ASCII in the C locale. Raises OSError or UsageError if the file cannot
    be opened."""
    file = files_of(path).open(path)
    if is_remote(path) or not path.isprintable():  # Lone surrogates are not printable.
        return file
    file.close()  # Opening the file has ruled out a pipe, on which Arrow would block.
    return path


@functools.cache
def _remote_files() -> Files:
    from pipeline.storage.gcs_files import GcsFiles  # Takes a second to import.

    return GcsFiles()
