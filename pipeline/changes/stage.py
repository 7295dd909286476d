"""The step that publishes, once all else is there."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam

from pipeline.changes.publish import Publishing, publish
from pipeline.runner.counters import count, timed


class Publish(beam.DoFn):
    """Dataset fingerprint -> the same, after `publish`."""

    def __init__(self, publishing: Publishing) -> None:
        self._publishing = publishing

    def process(self, dataset: str) -> Iterator[str]:
        with timed("publish"):
            is_new = publish(self._publishing)
        if is_new:
            count("versions_published")
        yield dataset
