"""Claims on a local or mounted file system.

PATH/<token>/about    the claim's metadata
PATH/<token>/<n>      an empty file, which every renewal renames to the next number

Each step is one rename, which is atomic and succeeds for only one process: a folder replaces
another only if the other is empty, and no two claims have a name in common. So removing a claim,
however late, never touches the next one. A lock file with a fixed name would not be enough, because
another process may replace the file after it was looked at and before it is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat

from pipeline.errors import JobError
from pipeline.storage.file_kind import PathClaim

_TOKEN = re.compile("[0-9a-f]{8,64}")
_METADATA = "about"
_CLAIMED = (errno.ENOTEMPTY, errno.EEXIST)
"""Errors of a rename to a path that is claimed."""


class LocalClaims:
    """The methods of `Files` for claims."""

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
                # The claim is being removed at this moment, or a power cut has left only a part of
                # it.
                if os.path.isdir(os.path.join(path, token)):
                    return PathClaim(token, b"", "")
                return None
        if names:
            stray = os.path.join(path, names[0])
            raise JobError(f"{stray} does not belong in {path}, which is a lock; remove it")
        # An empty folder is no claim, but not every file system lets a rename replace it.
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
        # A renewal between the two steps is not seen: the holder loses its claim, and stops at its
        # next write.
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
