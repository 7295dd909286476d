"""Locates the compiled kernels, and decides whether the code in a folder may be loaded.

Its errors are those after which the caller should call `cv2.grabCut` instead.

Each version of the kernels has its own folder, named after a hash of everything that decides the
compiled code: the sources of this package with their paths, the versions of Python, numba and
llvmlite, and the processor. So stale code is never loaded.

numba stores code as pickles, and whoever writes a pickle decides what runs when it is loaded. So a
folder is used only if nobody but this user and root can change what is in it.

A container image that runs on many machines sets numba's variables NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES to a processor whose features all machines have, so that one folder serves all.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import os
import stat
import sys
from pathlib import Path
from typing import ClassVar, Self

from transforms.hashing import text_bytes


class Unsupported(ValueError):
    """The kernels cannot compute this mask, for the reason in the message.

    Where the kernels give up because no pixel is inside the rectangle, because no pixel is outside,
    or because a Gaussian has no inverse covariance, `cv2.grabCut` raises `cv2.error`, too. Where
    they give up because the search is too deep or the picture too large, it computes the mask.
    """


class Unavailable(RuntimeError):
    """This machine cannot compile the kernels, or cannot store their code."""


def _processor() -> tuple[str, str]:
    """Returns the name and features of the processor that numba compiles for.

    This is the machine's own processor unless the environment names another one. Raises Unavailable
    if this machine lacks a feature that the environment names, so the code could not run.
    """
    from llvmlite import binding

    host = binding.get_host_cpu_features()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    named = [part[1:] for part in (features or "").split(",") if part.startswith("+")]
    missing = [name for name in named if not host.get(name)]
    if missing:
        raise Unavailable(f"this processor lacks {', '.join(missing)} of NUMBA_CPU_FEATURES")
    name = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    return name, host.flatten() if features is None else features


@functools.cache
def code_hash() -> str:
    """Hashes everything that decides the compiled code to 16 hexadecimal digits.

    Raises Unavailable if numba is not installed, or this machine lacks a feature that the
    environment names.
    """
    try:
        versions = [
            *map(importlib.metadata.version, ("numba", "llvmlite")),
            sys.version,
            *_processor(),
        ]
    except Unavailable:
        raise
    except (ImportError, OSError, RuntimeError) as error:
        raise Unavailable(f"numba cannot be imported: {error}") from error
    digest = hashlib.sha256(text_bytes("\n".join(versions)))
    folder = Path(__file__).parent
    for path in sorted(folder.glob("*.py")):
        digest.update(text_bytes(f"\n{path}\n"))
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Returns IN9_CACHE_DIR, or else this package's folder in the user's cache.

    The path is not absolute if IN9_CACHE_DIR is not, or if nothing names the user's home.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("IN9_CACHE_DIR") or os.path.join(base, "imagenet9-pipeline"))


def code_folder() -> Path:
    """Returns the folder of the compiled kernels. Raises Unavailable as `code_hash` does."""
    return cache_folder() / f"grabcut-{code_hash()}"


def claim(folder: Path, *, is_above: bool = False) -> None:
    """Makes a folder, if it is missing, and checks that only this user and root can change it.

    A new folder is readable by this user only. Nobody else may replace the folder or write to it,
    nor to any folder and link above it.

    Args:
      is_above: whether the folder only lies above the one that will be used. It may then be a
        sticky folder of root's, such as /tmp, where nobody can replace the entries of others.

    Raises:
      OSError: the folder must not be used, or cannot be made. `filename` is the part of the path
        that is at fault, and `strerror` says why.
    """
    if not folder.is_absolute():
        raise PermissionError(errno.EPERM, "no absolute path", str(folder))
    for part in (*reversed(folder.parents), folder):
        if not os.path.lexists(part):
            with contextlib.suppress(FileExistsError):
                part.mkdir(0o700)
        may_be_sticky = is_above or part != folder
        if flaw := _find_flaw(part, may_be_sticky=may_be_sticky):
            raise PermissionError(errno.EPERM, flaw, str(part))
        if part.is_symlink():
            part.stat()  # Fails if links lead in a circle.
            claim(part.parent / part.readlink(), is_above=may_be_sticky)


def _find_flaw(path: Path, *, may_be_sticky: bool = False) -> str:
    """Returns how others can change a file or folder; empty if they cannot.

    A link is not followed. Nobody can write to it, and only its owner can replace it.
    """
    status = path.lstat()
    if status.st_uid not in (0, os.geteuid()):
        return "it belongs to another user"
    is_sticky = may_be_sticky and status.st_uid == 0 and status.st_mode & stat.S_ISVTX
    if status.st_mode & 0o022 and not stat.S_ISLNK(status.st_mode) and not is_sticky:
        return "others may write to it"
    return ""


def _code_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.nb[ic]"))


def _checksum(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for path in _code_files(folder):
        digest.update(text_bytes(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"))
    return text_bytes(digest.hexdigest())


def is_complete(folder: Path) -> bool:
    """Returns whether a folder holds all compiled code, undamaged, for others not to change."""
    try:
        if any(_find_flaw(path) for path in _code_files(folder)):
            return False
        return (folder / "complete").read_bytes() == _checksum(folder)
    except FileNotFoundError:
        return False


def complete(folder: Path) -> None:
    """Records that a folder holds all compiled code."""
    for path in _code_files(folder):
        path.chmod(path.stat().st_mode & ~0o022)
    (folder / "complete").write_bytes(_checksum(folder))


def discard(folder: Path) -> None:
    """Deletes the compiled code in a folder."""
    for path in (folder / "complete", *_code_files(folder)):
        path.unlink(missing_ok=True)


class Locator:
    """Tells numba where the code of a function is stored, through numba's locator interface.

    Numba's own locators choose the folder by the function's file alone, and require that it can be
    written, but here the folder may be part of a read-only container image.
    """

    folder: ClassVar[Path]

    @classmethod
    def from_function(cls, function: object, path: str) -> Self:
        return cls()

    def ensure_cache_path(self) -> None:
        pass

    def get_cache_path(self) -> str:
        return str(self.folder)

    def get_source_stamp(self) -> str:
        return code_hash()

    def get_disambiguator(self) -> str:
        return "kernel"
