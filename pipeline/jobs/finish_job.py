"""The last step of a job's graph: writes a summary for monitoring, and releases the lock.

The summary is a file in the work folder and a line of the log, `in9 summary: {...}`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

from pipeline.analyses import ANALYSES
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.evaluate.work import Work
from pipeline.runtime.lock import DATASET_LOCK, release
from pipeline.runtime.progress import Progress
from pipeline.storage.state_files import json_bytes
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.limits import load_json

LAST_RUN = f"{WORK_FOLDER}/last_run.json"
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class JobSummary:
    """What the last step of a job needs, to write the summary and to clean up.

    Attributes:
      command: name of the command.
      store: the dataset folder, which gets the summary.
      progress: the progress notes of the job, which the last step removes if the job is alone.
      before: fingerprint of the dataset before the job; None if there was none.
      works: what the job's models do, by analysis, in order.
      has_lock: whether the graph holds the dataset's lock.
      alone: whether no process waits for the job. Then only the job itself can remove its progress
        notes, and fail if a condition holds.
    """

    command: str
    store: Store
    progress: Progress
    before: str | None
    works: Mapping[str, Work] = dataclasses.field(default_factory=dict)
    has_lock: bool = False
    alone: bool = False

    def summary(self) -> dict[str, Any]:
        """Returns the summary: figures of the dataset, and what each analysis adds."""
        dataset = Dataset.open(self.store)
        manifest = dataset.manifest
        content: dict[str, Any] = {
            "command": self.command,
            "dataset": manifest.fingerprint,
            "changed": manifest.fingerprint != self.before,
            "images": {
                split: {name: images[name] for name in ("listed", "accepted", "rejected")}
                for split, images in manifest.images.items()
            },
        }
        for analysis in ANALYSES:
            if work := self.works.get(analysis.name):
                content |= analysis.parts.monitored(dataset, work)
        return content


def finish_job(dataset: str, ending: JobSummary) -> str:
    """Writes the summary and cleans up; passes the dataset's fingerprint on.

    Raises:
      JobError: a condition of `--fail_if` holds, and no process waits for the job.
    """
    summary = ending.summary()
    # Written even if unchanged, because the file's time tells when a job last succeeded.
    ending.store.write(LAST_RUN, json_bytes({"summary": summary}))
    _LOG.info("%s", _summary_line(summary))
    if ending.alone:
        ending.progress.clear()
    if ending.has_lock:
        release(ending.store, DATASET_LOCK, ending.store.job)
    if ending.alone and summary.get("fail_if"):
        raise JobError("; ".join(f"--fail_if {line}" for line in summary["fail_if"]))
    return dataset


def _summary_line(summary: Mapping[str, Any]) -> str:
    """Formats the line that monitoring looks for."""
    return f"in9 summary: {json.dumps(summary, sort_keys=True)}"


def print_summary(store: Store) -> None:
    """Prints the summary of the job that has just ended, unless standard output is a terminal,
    where the closing text has told the reader the same."""
    if not sys.stdout.isatty():
        print(_summary_line(load_json(store.read(LAST_RUN))["summary"]))
