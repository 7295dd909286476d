"""Whether there is anything to do, told at launch by listings alone.

A scheduled job that finds nothing new should not start machines to find that out. What is
looked at is bounded: folders with more files than `MAX_FILES`, or that take longer to list than
`MAX_SECONDS`, are left to the job itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import apache_beam as beam

from pipeline.command_line.last_run import line_of, read_note, results_state
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.latest import Versions
from pipeline.dataset.manifest import MANIFEST, read_manifest
from pipeline.errors import UsageError
from pipeline.imagenet.folder import SPLIT
from pipeline.models.entries import place_of
from pipeline.segmenters.masks import is_coco_file
from pipeline.sources.layout import find_images, find_layout
from pipeline.storage.files import FileInfo, absolute, files_of
from pipeline.storage.store import Store

MAX_FILES = 200_000
MAX_SECONDS = 60.0
_LIBRARIES = ("apache-beam", "matplotlib", "numpy", "opencv-python-headless", "pillow", "timm")
_HOW = ("gpus", "dry_run", "models")
"""Flags that decide where and how a job runs, not what comes out; models count by their names,
which may be patterns in the flag."""
_LOG = logging.getLogger(__name__)


class _TooMuch(Exception):
    """More to list than a launch may take the time for."""


class _Budget:
    """What is left of the bounds."""

    def __init__(self) -> None:
        self._files = MAX_FILES
        self._until = time.monotonic() + MAX_SECONDS

    def within(self, files: Iterable[FileInfo]) -> Iterator[FileInfo]:
        """Hands files on. Raises _TooMuch at a bound."""
        for file in files:
            self._files -= 1
            if self._files < 0 or time.monotonic() > self._until:
                raise _TooMuch
            yield file


def digest_of_inputs(
    arguments: argparse.Namespace, config: DatasetConfig, models: Sequence[str]
) -> str | None:
    """Identifies everything that the results of a job are made from: files by name, size and
    generation, flags, code and library versions. Weights that only a hub has count by name.

    Args:
      arguments: of `build_parser`, for `run` or `generate`.
      config: of the dataset.
      models: entries of `--models`, expanded.

    Returns:
      None if there is more to list than the bounds allow.
    """
    digest = hashlib.sha256()
    flags = {name: value for name, value in vars(arguments).items() if name not in _HOW}
    versions = [(name, _version(name)) for name in (*_LIBRARIES, "torch")]
    told = [flags, config.flags(), list(models), versions, _code()]
    digest.update(json.dumps(told, default=str).encode())
    budget = _Budget()
    try:
        for file in budget.within(_files(arguments, config)):
            digest.update(f"{file.path}\0{file.size}\0{file.identity}\n".encode())
    except (_TooMuch, OSError):
        return None
    masks = [absolute(arguments.masks)] if is_coco_file(arguments.masks or "") else []
    places = [absolute(place) for place in map(place_of, models) if place]
    for path in (*places, *masks):
        info = files_of(path).info(path)
        digest.update(f"{path}\0{info and info.identity}\n".encode())
    return digest.hexdigest()


def _files(arguments: argparse.Namespace, config: DatasetConfig) -> Iterator[FileInfo]:
    """Files that a job reads."""
    annotations = absolute(arguments.annotations) if arguments.annotations else None
    for split in config.split:
        source = absolute(arguments.input)
        layout = find_layout(
            source, annotations, split, arguments.layout, needs_boxes=arguments.masks is None
        )
        yield from layout.inputs()
    folders = []
    if arguments.masks and not is_coco_file(arguments.masks):
        folders.append(absolute(arguments.masks))
    if arguments.backgrounds:
        folders.append(absolute(arguments.backgrounds))
    if getattr(arguments, "imagenet", None):
        folders.append(find_images(absolute(arguments.imagenet), SPLIT, "--imagenet"))
    if getattr(arguments, "weights", None):
        folders.append(absolute(arguments.weights))
    for folder in folders:
        yield from files_of(folder).walk(folder)


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _code() -> str:
    """Fingerprint of this program."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted((*package.rglob("*"), *package.with_name("transforms").rglob("*"))):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def unchanged_summary(
    store: Store, versions: Versions | None, inputs: str
) -> dict[str, Any] | None:
    """The summary of the last job, if all is as it left it, and it was made from the same.

    Args:
      store: the dataset folder.
      versions: that the dataset belongs to, if it does: the newest must be there, too.
      inputs: of `digest_of_inputs`.
    """
    manifest = read_manifest(store)
    newest = versions.newest() if versions else store
    if manifest is None or newest is None or not newest.exists(MANIFEST):
        return None
    note = read_note(versions.output if versions else store)
    if note.get("inputs") != inputs or "results" not in note:
        return None
    summary: dict[str, Any] = note["summary"]
    # A condition that holds has to fail the next job, too.
    if summary["dataset"] != manifest.fingerprint or summary.get("fail_if"):
        return None
    budget = _Budget()
    try:
        sizes = {file.path: file.size for file in budget.within(store.files.walk(store.root))}
        results = [list(state) for state in results_state(store)]
    except (_TooMuch, OSError, UsageError):
        return None
    whole = all(sizes.get(store.path(file.path)) == file.bytes for file in manifest.files)
    return {**summary, "changed": False} if whole and results == note["results"] else None


class SaySummary(beam.DoFn):
    """Anything -> the same; logs a summary: all that is left to do."""

    def __init__(self, summary: dict[str, Any]) -> None:
        self._line = line_of(summary)

    def process(self, element: Any) -> Iterator[Any]:
        _LOG.info("%s", self._line)
        yield element
