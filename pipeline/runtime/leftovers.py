"""Files that killed processes leave in the work folder.

No list names these files, so they are recognised by their names:

tmp/<process>+<hex>     a file or claim that was being written
lock*                   a lock: see `remove_dead_locks`
progress/<process>      progress notes of a job
<command>-<number>.log  the log of a command that may run beside others

Temporary files, locks and notes of a process that is known to have ended are removed at once; notes
by the next job that shows its progress. Whether a process in another container or on a lost machine
has ended cannot be known, so its temporary files and notes are removed after a week without change.
So are logs, which tell until then why a command failed. Files with any other name stay.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import time
from collections.abc import Iterator

from pipeline.runtime.lock import remove_dead_locks
from pipeline.runtime.progress import Progress
from pipeline.storage.store import TEMPORARY, WORK_FOLDER, Store

WEEK_SECONDS = 7 * 24 * 3600.0
_LOG = re.compile(r"[a-z]+-[0-9]+\.log")
_TEMPORARY = re.compile(r".+\+[0-9a-f]{32}")
_NOTES = re.compile(r".+\+[0-9]+(\+[0-9]*)?")


@contextlib.contextmanager
def removed_if_refused(store: Store, *notes: str) -> Iterator[None]:
    """Removes a new folder again if the block fails before it has written a file, because later
    commands take a work folder for a sign that the folder is ours.

    Args:
      store: the folder that the block writes into.
      notes: relative paths of folders whose files do not count as written, and are removed as well.
    """
    topmost = store.root
    while not store.is_remote and not os.path.exists(os.path.dirname(topmost)):
        topmost = os.path.dirname(topmost)
    is_new, was_used = not store.has_folder(""), store.has_folder(WORK_FOLDER)
    try:
        yield
    except Exception:
        # A folder that cannot even be listed, such as one in no bucket, has nothing to remove.
        with contextlib.suppress(OSError):
            files = [] if was_used else list(store.walk(""))
            if not was_used and all(path.startswith(tuple(notes)) for path in files):
                store.delete_all(files)
                store.prune(WORK_FOLDER)
            if is_new:
                Store.at(topmost).prune("")
        raise


def remove_leftovers(store: Store) -> None:
    """Removes leftovers of killed processes. Other jobs may be running.

    Args:
      store: a dataset folder, or the folder of its published versions.
    """
    store.remove_temporary()
    remove_dead_locks(store)
    notes = posixpath.dirname(Progress.for_store(store).folder)
    cutoff = time.time() - WEEK_SECONDS
    for folder, pattern in ((WORK_FOLDER, _LOG), (TEMPORARY, _TEMPORARY), (notes, _NOTES)):

        def is_old(name: str, folder: str = folder, pattern: re.Pattern[str] = pattern) -> bool:
            path = store.path(f"{folder}/{name}")
            return pattern.fullmatch(name) is not None and _last_change(store, path) < cutoff

        store.remove_each(folder, is_old)
    store.prune(notes)


def _last_change(store: Store, path: str) -> float:
    """Returns when a file, or anything in a folder, last changed, in seconds since the epoch."""
    times = [info.time for info in store.files.walk(path)]
    if store.is_remote:
        info = store.files.info(path)
        times += [info.time] if info else []
    else:
        # Renaming a file changes only this time, and not the time of its content.
        with contextlib.suppress(FileNotFoundError):
            times.append(os.lstat(path).st_ctime)
    return max(times, default=time.time())
