"""Where the compiled kernels lie.

Each version of the kernels has a folder of its own, named after a hash of everything that
decides their code: the sources of this package, the versions of Python, numba and
llvmlite, the processor. So stale code cannot be found.

An image that is built once and runs on many machines names the processor by numba's own
variables, NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, and so has one folder for all of them.
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
    """Name and features of the processor that numba compiles for: this one, if none is named.

    Raises:
      Unavailable: this one lacks a feature that is named, so that the code could not run.
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
    """Hash of what decides the machine code: 16 hexadecimal digits.

    Raises:
      Unavailable: numba is not installed, or must not compile for this processor.
    """
    try:
        versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
        versions += [sys.version, *_processor()]
    except (ImportError, OSError, RuntimeError) as error:
        raise Unavailable(f"numba cannot be imported: {error}") from error
    digest = hashlib.sha256("\n".join(versions).encode())
    folder = Path(__file__).parent
    for path in sorted(folder.glob("*.py")):
        digest.update(f"\n{path}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def code_folder() -> Path:
    """The folder of the compiled kernels, below IN9_CACHE_DIR, or in the user's cache.

    Raises:
      Unavailable: as `code_hash`.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    own = os.environ.get("IN9_CACHE_DIR") or os.path.join(base, "imagenet9-pipeline")
    return Path(own, f"grabcut-{code_hash()}")


class Locator:
    """Tells numba, which asks by these names, where a function's code is.

    Numba's own locators go by the file of the function alone, and want to write to the
    folder, which may be part of a read-only image.
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
