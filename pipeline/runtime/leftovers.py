"""What killed processes leave in the work folder, where no list names it.

tmp/<process>+<hex>     a file, or a claim, that was being written
lock*                   a lock: see `remove_dead_locks`
progress/<process>      notes of a job
<command>-<number>.log  the log of a command that others run beside

What is of a process that is known to be over goes at once. Whether one in another container, or on
a machine that is gone, is over can never be known: what nothing has changed for a week goes.
Whatever has another name is none of ours, and stays.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import time

from pipeline.runtime.lock import remove_dead_locks
from pipeline.runtime.progress import Progress
from pipeline.storage.files import join
from pipeline.storage.store import TEMPORARY, WORK_FOLDER, Store

WEEK_SECONDS = 7 * 24 * 3600.0
_HEX = "[0-9a-f]{32}"
_OF_WORK_FOLDER = re.compile(r"[a-z]+-[0-9]+\.log")
_TEMPORARY = re.compile(rf".+\+{_HEX}")
_NOTES = re.compile(r".+\+[0-9]+(\+[0-9]*)?")


def remove_leftovers(store: Store) -> None:
    """Removes them. Others may be at work beside.

    Args:
      store: a dataset folder, or one of published versions.
    """
    store.remove_temporary()
    remove_dead_locks(store)
    notes = posixpath.dirname(Progress.for_store(store).folder)
    before = time.time() - WEEK_SECONDS
    for folder, names in ((WORK_FOLDER, _OF_WORK_FOLDER), (TEMPORARY, _TEMPORARY), (notes, _NOTES)):
        path = store.path(folder)
        for name in map(os.path.basename, store.files.children(path)):
            if names.fullmatch(name) and _last_change(store, join(path, name)) < before:
                store.delete(f"{folder}/{name}")
        for name in store.files.folders(path):
            if names.fullmatch(name) and _last_change(store, join(path, name)) < before:
                store.delete_tree(f"{folder}/{name}")
    store.prune(notes)


def _last_change(store: Store, path: str) -> float:
    """When a file, or anything in a folder, was changed, in seconds of the epoch."""
    times = [info.time for info in store.files.walk(path)]
    if store.is_remote:
        info = store.files.info(path)
        times += [info.time] if info else []
    else:
        # A file that was renamed says by this alone when that was.
        with contextlib.suppress(FileNotFoundError):
            times.append(os.lstat(path).st_ctime)
    return max(times, default=time.time())
