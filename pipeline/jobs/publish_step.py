"""The step that publishes, once all else is there."""

from __future__ import annotations

import apache_beam as beam

from pipeline.jobs.publish import Publishing, publish
from pipeline.runtime.counters import count, timed


class Publish(beam.DoFn):
    """Dataset fingerprint -> the same, after `publish`."""

    def __init__(self, publishing: Publishing) -> None:
        self._publishing = publishing

    @timed("publish")
    def process(self, dataset: str) -> list[str]:
        if publish(self._publishing):
            count("versions_published")
        return [dataset]
