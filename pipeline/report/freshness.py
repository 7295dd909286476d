"""Tells whether the page is up to date without rendering it.

A note in the work folder holds a fingerprint of everything that the page is made from (files by
size and time, and the code that renders it), and the state of the page's own files when they were
written.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.manifest import MANIFEST
from pipeline.errors import shown_bytes
from pipeline.storage.state_files import RelativePath, read_json
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.hashing import text_bytes

_NOTE = f"{WORK_FOLDER}/report.json"
_LIBRARIES = ("jinja2", "matplotlib", "pillow")
_ROOT = Path(__file__).parents[2]
"""Folder that holds `pipeline` and `transforms`."""
_CODE = (".py", ".html", ".css", ".js", ".csv")
"""Suffixes of the files that may decide what the page shows."""


@dataclasses.dataclass(frozen=True)
class _Note:
    """Content of the note: the fingerprint, and the page's files as `_states` returns them."""

    inputs: str
    outputs: list[tuple[RelativePath, int, str]]


@functools.cache
def _code() -> str:
    """Returns a fingerprint of the libraries that render the page, and of this project's code, all
    of which may have a part in it."""
    digest = hashlib.sha256()
    for path in code_files():
        digest.update(text_bytes(f"{path.relative_to(_ROOT)}\0"))
        digest.update(path.read_bytes())
    return fingerprint(digest.hexdigest(), [version(name) for name in _LIBRARIES])


def code_files() -> list[Path]:
    """Lists the files of this project's code and templates."""
    paths = (path for name in ("pipeline", "transforms") for path in (_ROOT / name).rglob("*"))
    return sorted(path for path in paths if path.suffix in _CODE)


def _states(store: Store, paths: Iterable[str]) -> list[tuple[str, int, str]]:
    """Returns path, size and identity of each file; a missing file has size -1."""
    states = []
    for path in paths:
        info = store.files.info(store.path(path))
        states.append((path, -1, "") if info is None else (path, info.size, info.identity))
    return states


def fingerprint_inputs(store: Store, inputs: Iterable[str], pictures: str, *, pdf: bool) -> str:
    """Returns a fingerprint of everything that a page is made from.

    Args:
      store: the dataset folder.
      inputs: relative paths of the results that the page is made from.
      pictures, pdf: arguments of `write_report`.
    """
    return fingerprint(_states(store, [MANIFEST, *sorted(inputs)]), pictures, pdf, _code())


def is_fresh(store: Store, inputs: str) -> bool:
    """Returns whether the page was made from these inputs and its files are unchanged since."""
    note = read_json(store, _NOTE, _Note)
    if note is None or note.inputs != inputs:
        return False
    return _states(store, [path for path, _, _ in note.outputs]) == note.outputs


def note_fresh(store: Store, inputs: str, outputs: Iterable[str]) -> None:
    """Records that the page's files, given by path, were made from these inputs."""
    note = _Note(inputs, _states(store, outputs))
    store.update(_NOTE, shown_bytes(json.dumps(dataclasses.asdict(note))))
