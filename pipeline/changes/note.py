"""What has changed since the last version, into changes.json and changes.md."""

from __future__ import annotations

import json
from typing import Any

from pipeline.changes.accuracies import compare_accuracies, is_changed
from pipeline.changes.history import (
    History,
    State,
    keep_state,
    read_history,
    read_state,
    write_history,
)
from pipeline.changes.images import ImageChanges, compare_images
from pipeline.changes.text import one_line, shown, to_markdown
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import Manifest
from pipeline.storage.lock import TABLES_LOCK, held
from pipeline.storage.state_files import parse_json
from pipeline.storage.store import Store

CHANGES = "changes.json"
CHANGES_TEXT = "changes.md"
_LOCK_SECONDS = 60.0


def note_changes(store: Store) -> bool:
    """Writes what has changed since the last version; nothing for a first one. Repeatable.

    The last version is the last finished state of another dataset, or in which a model that is
    still there did otherwise. A model that is evaluated later joins the comparison.

    Args:
      store: the dataset folder.

    Returns:
      Whether there was anything new to say.
    """
    with held(store, TABLES_LOCK, wait=_LOCK_SECONDS):
        now = State.of(Dataset.open(store))
        history = read_history(store)
        if history.now == now.name:
            return False
        last = read_state(store, history.now)
        before = last if last and _differs(last, now) else read_state(store, history.before)
        keep_state(now)
        changed = False
        if before is not None:
            changes = describe_changes(before, now)
            text = json.dumps(changes, indent=1, sort_keys=True) + "\n"
            changed = store.update(CHANGES, text.encode())
            changed |= store.update(CHANGES_TEXT, to_markdown(changes).encode())
        # Last: a job that is killed before it compares the same states again.
        write_history(store, History(before.name if before else None, now.name))
    return changed


def _differs(last: State, now: State) -> bool:
    """Whether more has happened than that models were evaluated beside the others."""
    if last.dataset.manifest.files != now.dataset.manifest.files:
        return True
    both = last.summaries.keys() & now.summaries.keys()
    return any(is_changed(last.summaries[name], now.summaries[name]) for name in both)


def describe_changes(before: State, after: State) -> dict[str, Any]:
    """The content of changes.json.

    Returns:
      `from` and `to`, fingerprints of the datasets; `causes` of their difference, each with what
      it is: `data`, `configuration` (flags), `code` (stages, libraries); `images` by split, of
      `compare_images`; `models`, of `compare_accuracies`.
    """
    old, new = before.dataset.manifest, after.dataset.manifest
    splits = dict.fromkeys((*old.shards, *new.shards))
    images = {split: compare_images(before.dataset, after.dataset, split) for split in splits}
    causes = _dataset_causes(old, new, images)
    return {
        "from": old.fingerprint,
        "to": new.fingerprint,
        "causes": causes,
        "images": {split: found.to_json() for split, found in images.items()},
        "models": list(compare_accuracies(before, after, list(causes))),
    }


def _dataset_causes(
    old: Manifest, new: Manifest, images: dict[str, ImageChanges]
) -> dict[str, list[str]]:
    """Why two datasets differ: cause to what it is."""
    causes = {}
    was, now = old.config.flags(), new.config.flags()
    flags = [
        f"--{name} {shown(was[name])} -> {shown(now[name])}"
        for name in old.config.differing_flags(new.config)
    ]
    stages = ["segment", "compose"]
    if not flags and old.stages.get("segment") == new.stages.get("segment"):
        # Of the segmenter, say.
        stages.append("segment_fingerprint")
    code = [
        f"{name} {before[name]} -> {after[name]}"
        for names, before, after in (
            (stages, old.stages, new.stages),
            (list(new.libraries), old.libraries, new.libraries),
        )
        for name in names
        if name in before and before[name] != after[name]
    ]
    if any(found.is_input for found in images.values()):
        causes["data"] = [
            f"{split}: {len(found.added)} images added, {len(found.removed)} removed"
            + ("" if found.changed is None else f", {len(found.changed)} changed")
            for split, found in images.items()
            if found.is_input
        ]
    if flags:
        causes["configuration"] = flags
    if code and old.files != new.files:
        causes["code"] = code
    return causes


def describe_changes_of(store: Store) -> str:
    """A closing line about the changes that a dataset folder has noted."""
    changes = parse_json(store.read(CHANGES), dict[str, Any])
    return f"changed since the last version: {one_line(changes)}; see {store.path(CHANGES_TEXT)}"
