"""Locates the compiled kernels.

Each version of the kernels has its own folder, named after a hash of everything that decides the
compiled code: the sources of this package with their paths, the versions of Python, numba and
llvmlite, and the processor. So stale code is never loaded.

A container image that runs on many machines sets numba's variables NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES to a processor whose features all machines have, so that one folder serves all.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import sys
from pathlib import Path

from transforms.grabcut.errors import Unavailable


def _processor() -> tuple[str, str]:
    """Returns the name and features of the processor that numba compiles for.

    This is the machine's own processor unless the environment names another one.

    Raises:
      Unavailable: this machine lacks a feature that the environment names, so the code could not
        run.
    """
    from llvmlite import binding

    host = binding.get_host_cpu_features()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    named = [] if features is None else [part for part in features.split(",") if part]
    missing = [part[1:] for part in named if part[0] == "+" and not host.get(part[1:])]
    if missing:
        raise Unavailable(f"this processor lacks {', '.join(missing)} of NUMBA_CPU_FEATURES")
    name = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    return name, host.flatten() if features is None else features


@functools.cache
def code_hash() -> str:
    """Hashes everything that decides the compiled code to 16 hexadecimal digits.

    Raises:
      Unavailable: numba is not installed, or this machine lacks a feature that the environment
        names.
    """
    try:
        versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
        versions += [sys.version, *_processor()]
    except Unavailable:
        raise
    except (ImportError, OSError, RuntimeError) as error:
        raise Unavailable(f"numba cannot be imported: {error}") from error
    digest = hashlib.sha256("\n".join(versions).encode())
    folder = Path(__file__).parent
    for path in sorted(folder.glob("*.py")):
        digest.update(f"\n{path}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def code_folder() -> Path:
    """Returns the folder of the compiled kernels, in IN9_CACHE_DIR or in the user's cache.

    Raises:
      Unavailable: for the reasons of `code_hash`.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = os.environ.get("IN9_CACHE_DIR") or os.path.join(base, "imagenet9-pipeline")
    return Path(cache, f"grabcut-{code_hash()}")


class Locator:
    """Tells numba where the code of a function is stored, through numba's locator interface.

    Numba's own locators choose the folder by the function's file alone, and require that it can be
    written, but here the folder may be part of a read-only container image.
    """

    def __init__(self, path: str) -> None:
        self._folder = str(code_folder())

    @classmethod
    def from_function(cls, function: object, path: str) -> Locator:
        return cls(path)

    def ensure_cache_path(self) -> None:
        os.makedirs(self._folder, exist_ok=True)

    def get_cache_path(self) -> str:
        return self._folder

    def get_source_stamp(self) -> str:
        return code_hash()

    def get_disambiguator(self) -> str:
        return "kernel"
