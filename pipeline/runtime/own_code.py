"""The files of this project's code, and a digest of them."""

import hashlib
from pathlib import Path

from transforms.hashing import text_bytes


def code_files(suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Returns the files of `pipeline` and `transforms` with one of these suffixes, by their name.

    A name is the path from the folder that holds both, and the names are in order.
    """
    root = Path(__file__).parents[2]
    paths = (path for name in ("pipeline", "transforms") for path in (root / name).rglob("*"))
    return {str(path.relative_to(root)): path for path in sorted(paths) if path.suffix in suffixes}


def digest_of_code(*suffixes: str) -> str:
    """Returns a SHA-256 of the names and contents of these files."""
    digest = hashlib.sha256()
    for name, path in code_files(suffixes).items():
        digest.update(text_bytes(f"{name}\0"))
        digest.update(path.read_bytes())
    return digest.hexdigest()
