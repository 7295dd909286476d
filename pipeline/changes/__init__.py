"""changes.json and changes.md: what has changed since the dataset's last version, and why.

    history (states kept in .in9) -> images, accuracies, causes -> text

Nothing here is part of the dataset: like results, it stands beside the manifest.
"""

from pipeline.changes.note import CHANGES as CHANGES
from pipeline.changes.note import CHANGES_TEXT as CHANGES_TEXT
from pipeline.changes.note import describe_changes_of as describe_changes_of
from pipeline.changes.note import note_changes as note_changes
