"""The step that notes what has changed, once all results are there."""

from __future__ import annotations

import apache_beam as beam

from pipeline.changes.note import note_changes
from pipeline.runner.counters import count, timed
from pipeline.storage.store import Store


class NoteChanges(beam.DoFn):
    """Dataset fingerprint -> the same, after `note_changes`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @timed("changes")
    def process(self, dataset: str) -> list[str]:
        if note_changes(self._store):
            count("changes_noted")
        return [dataset]
