"""Identity of the content of files whose parts are images: it changes when one of those does.

On this machine the content of each part is hashed once, and the hash remembered while the file
keeps its size and time (`pipeline.inputs.checksums`). In object storage that would be a
download, so a part is known by its file's checksum, which the storage keeps.
"""

from __future__ import annotations

from pipeline.storage.file_kind import missing
from pipeline.storage.files import files_of, is_remote


def identity_of(path: str) -> str | None:
    """Identity of a file's content, None where its parts are to be hashed. Raises OSError."""
    if not is_remote(path):
        return None
    info = files_of(path).info(path)
    if info is None:
        raise missing(path)
    return info.md5 or f"{info.size}:{info.identity}"
