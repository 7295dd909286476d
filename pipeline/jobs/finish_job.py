"""The end of a job, in its graph: a summary of one line for monitoring, and the lock is given
back.

The summary is a file of the work folder, and a line of the log: `in9 summary: {...}`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import apache_beam as beam

from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.evaluate.failures import errors_of, read_failures
from pipeline.evaluate.result_files import display_name
from pipeline.evaluate.summaries import read_summaries
from pipeline.jobs.fail_if import Condition, judge
from pipeline.runtime.lock import DATASET_LOCK, release
from pipeline.runtime.progress import Progress
from pipeline.storage.store import WORK_FOLDER, Store

if TYPE_CHECKING:
    from pipeline.evaluate.evaluation import Evaluation

LAST_RUN = f"{WORK_FOLDER}/last_run.json"
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class JobSummary:
    """What is said and done when a job's work is done.

    Attributes:
      command: of the command line.
      store: the dataset folder, where the summary goes.
      progress: the job's notes, which go.
      before: fingerprint of the dataset that the job began with, None if there was none.
      evaluation: of the models that it evaluated, if any.
      conditions: of `--fail_if`.
      has_lock: whether the graph holds the dataset's lock.
      alone: whether nobody waits for the job: a condition that holds then has to fail it.
    """

    command: str
    store: Store
    progress: Progress
    before: str | None
    evaluation: Evaluation | None = None
    conditions: tuple[Condition, ...] = ()
    has_lock: bool = False
    alone: bool = False

    def summary(self) -> dict[str, Any]:
        """What came out: the dataset, and each model that the job evaluated."""
        dataset = Dataset.open(self.store)
        manifest = dataset.manifest
        found: dict[str, Any] = {
            "command": self.command,
            "dataset": manifest.fingerprint,
            "changed": manifest.fingerprint != self.before,
            "images": {
                split: {name: images[name] for name in ("listed", "accepted", "rejected")}
                for split, images in manifest.images.items()
            },
        }
        if self.evaluation is not None:
            entries = self.evaluation.models
            summaries, _ = read_summaries(dataset)
            how = self.evaluation.how
            ours = [s for s in summaries if s["entry"] in entries and _is_run(s, how)]
            failed, _ = read_failures(self.store, manifest.fingerprint, "evaluate")
            found["models"] = {display_name(s): _figures(s) for s in ours}
            found["failed"] = errors_of(failed, entries)
            verdicts = judge(self.conditions, ours, failed, entries, how)
            held = (verdict.line for verdict in verdicts if verdict.holds)
            found["fail_if"] = [line.removeprefix("--fail_if ") for line in held]
        return found


def _is_run(summary: Mapping[str, Any], how: Mapping[str, Any]) -> bool:
    """Whether a summary is of a model that was run like that."""
    return all(summary["evaluation"].get(name) == value for name, value in how.items())


def _figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """BG-Gap and the accuracy on the original pictures, by the paper's label rule."""
    figures = {}
    for row in summary["accuracy"]:
        if row["label_rule"] == "argmax_then_map" and row["variant"] == "original" and row["n"]:
            figures["original"] = round(row["accuracy"], 6)
    for row in summary["gaps"]:
        if row["label_rule"] == "argmax_then_map" and row["gap"] is not None:
            figures["bg_gap"] = round(row["gap"], 6)
    return figures


class FinishJob(beam.DoFn):
    """Dataset fingerprint -> the same; the last step of every job."""

    def __init__(self, ending: JobSummary) -> None:
        self._ending = ending

    def process(self, dataset: str) -> Iterator[str]:
        ending = self._ending
        summary = ending.summary()
        text = json.dumps({"summary": summary}, indent=1, sort_keys=True) + "\n"
        # Also if it says what it said before: its time tells when a job last ended well.
        ending.store.write(LAST_RUN, text.encode())
        _LOG.info("%s", _line_of(summary))
        if ending.alone:
            ending.progress.clear()
        if ending.has_lock:
            release(ending.store, DATASET_LOCK, ending.store.job)
        if ending.alone and summary.get("fail_if"):
            raise JobError("; ".join(f"--fail_if {line}" for line in summary["fail_if"]))
        yield dataset


def _line_of(summary: Mapping[str, Any]) -> str:
    """The line that monitoring looks for."""
    return f"in9 summary: {json.dumps(summary, sort_keys=True)}"


def say_summary(store: Store) -> None:
    """Prints the line of the job that has just ended, unless a person reads along: the
    closing words say the same."""
    if not sys.stdout.isatty():
        print(_line_of(json.loads(store.read(LAST_RUN))["summary"]))
