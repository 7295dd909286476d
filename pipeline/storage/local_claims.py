"""Claims on a file system: a path that only one can hold.

PATH/<token>/about    what the claim's maker says
PATH/<token>/<n>      an empty file, renamed to the next number by every renewal

Each step is one renaming, which the system does whole, and for one process only: a folder takes
the place of another only if that is empty, and no two claims have a name in common. So removing
one never touches the next, however late it comes; a file of one name could be told apart from
the next by looking at it first, and would be another one a moment later.
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
_ABOUT = "about"
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


def claim(path: str, token: str, about: bytes, temporary: str) -> bool:
    """See `Files.claim`."""
    folder = os.path.join(temporary, token)
    os.makedirs(folder)
    try:
        with open(os.path.join(folder, _ABOUT), "xb") as file:
            file.write(about)
        open(os.path.join(folder, "0"), "xb").close()
        os.rename(temporary, path)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def claimed(path: str) -> PathClaim | None:
    """See `Files.claimed`."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise JobError(f"{path} is something else in a lock's place; remove it")
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    for token in filter(_TOKEN.fullmatch, names):
        try:
            inside = os.listdir(os.path.join(path, token))
            state = next((name for name in inside if name.isdecimal()), "")
            with open(os.path.join(path, token, _ABOUT), "rb") as file:
                return PathClaim(token, file.read(), state)
        except FileNotFoundError:
            # It goes just now, or a power cut has left a part of it.
            if os.path.isdir(os.path.join(path, token)):
                return PathClaim(token, b"", "")
            return None
    if names:
        raise JobError(f"{path} is a lock, but holds {names[0]}; remove that")
    # What is empty is nobody's, but not every file system puts another folder in its place.
    with contextlib.suppress(OSError):
        os.rmdir(path)
    return None


def renew(path: str, claim: PathClaim) -> bool:
    """See `Files.renew`."""
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


def unclaim(path: str, claim: PathClaim, temporary: str) -> bool:
    """See `Files.unclaim`."""
    if claimed(path) != claim:
        return False
    os.makedirs(os.path.dirname(temporary), exist_ok=True)
    try:
        os.rename(os.path.join(path, claim.token), temporary)
    except FileNotFoundError:
        return False
    shutil.rmtree(temporary, ignore_errors=True)
    # Unless the next one is there.
    with contextlib.suppress(OSError):
        os.rmdir(path)
    return True
