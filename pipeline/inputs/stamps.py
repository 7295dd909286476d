"""Stamps of files whose parts are images: a stamp changes when one of those does.

In object storage a listing tells them, so that nobody has to ask for each image. On this machine
size and time of the file serve (`pipeline.inputs.checksums`).
"""

from __future__ import annotations

from pipeline.storage.file_kind import missing
from pipeline.storage.files import files_of, is_remote


def stamp_of(path: str) -> str | None:
    """Stamp of a file, None on this machine. Raises OSError."""
    if not is_remote(path):
        return None
    info = files_of(path).info(path)
    if info is None:
        raise missing(path)
    return info.md5 or f"{info.size}:{info.identity}"
