"""The steps of a job that works on a dataset with versions: its first and its last."""

from __future__ import annotations

from typing import Any

import apache_beam as beam

from pipeline.command_line.versions import publish, seed
from pipeline.dataset.latest import Versions
from pipeline.runner.counters import count, timed


class Seed(beam.DoFn):
    """Anything -> the same, after `seed`."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    @timed("publish")
    def process(self, element: Any) -> list[Any]:
        seed(self._versions)
        return [element]


class Publish(beam.DoFn):
    """Dataset fingerprint -> the same, after `publish`."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    @timed("publish")
    def process(self, dataset: str) -> list[str]:
        published = publish(self._versions)
        count("files_published", published.files)
        if published.is_new:
            count("versions_published")
        return [dataset]
