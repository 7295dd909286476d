"""The graph of all commands that make or evaluate a dataset. Each command uses a part of it.

(lock ->) generate -> stages that run models -> page (-> publish) -> end

The last step writes a summary for monitoring, a file in the work folder and a line of the log,
`in9 summary: {...}`, and releases the lock.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Concatenate, ParamSpec

import apache_beam as beam

from pipeline.analyses import ANALYSES
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import MANIFEST, PREVIOUS_MANIFEST
from pipeline.errors import JobError
from pipeline.evaluate.model_stage import ModelStage
from pipeline.evaluate.planned import PlannedAnalysis
from pipeline.generate.graph import GenerateDataset
from pipeline.generate.origin import GenerateJob
from pipeline.jobs.conditions import Gate, judge, outcome
from pipeline.jobs.publish import PublishPlan, publish
from pipeline.report.write import write_results
from pipeline.runtime.lock import (
    DATASET_LOCK,
    TABLES_LOCK,
    Owner,
    Renewal,
    acquire,
    is_held,
    locked,
    release,
)
from pipeline.runtime.progress import Progress, count, timed
from pipeline.storage.state_files import json_bytes
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.limits import load_json
from transforms.taxonomy import Taxonomy

LAST_RUN = f"{WORK_FOLDER}/last_run.json"
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class JobSummary:
    """What the last step of a job needs, to write the summary and to clean up.

    Attributes:
      progress: the progress notes of the job, which the last step removes if it is detached.
      before: fingerprint of the dataset before the job; None if there was none.
      plans: what the job's models do, by analysis, in order.
      is_detached: whether no process waits for the job. Then only the job itself can remove its
        notes, and fail if a condition holds.
      gate: what the models are judged by; None if the job does not evaluate models.
      outside: the variants from outside that the dataset has before the job.
    """

    command: str
    store: Store
    progress: Progress
    before: str | None
    plans: Mapping[str, PlannedAnalysis] = dataclasses.field(default_factory=dict)
    has_lock: bool = False
    is_detached: bool = False
    gate: Gate | None = None
    outside: tuple[str, ...] = ()

    def summary(self, dataset: Dataset) -> dict[str, object]:
        """Returns the summary: figures of the dataset, and what each analysis adds."""
        manifest = dataset.manifest
        content: dict[str, object] = {
            "command": self.command,
            "dataset": manifest.fingerprint,
            "changed": manifest.fingerprint != self.before,
            "images": {
                split: {name: images[name] for name in ("listed", "accepted", "rejected")}
                for split, images in manifest.images.items()
            },
        }
        for analysis in ANALYSES:
            if work := self.plans.get(analysis.name):
                content |= analysis.parts.monitored(dataset, work)
        return content


def finish_job(dataset: str, ending: JobSummary) -> str:
    """Writes the summary and cleans up; passes the dataset's fingerprint on.

    Raises JobError if no process waits for the job, and would end with the code of `conclude`.
    """
    current = Dataset.open(ending.store)
    summary, judgements = ending.summary(current), []
    if ending.gate:
        judgements = judge(ending.gate, current)
        summary["fail_if"] = [dataclasses.asdict(judgement) for judgement in judgements]
    # Written even if unchanged, because the file's time tells when a job last succeeded.
    ending.store.write(LAST_RUN, json_bytes({"summary": summary}))
    _LOG.info("%s", _summary_line(summary))
    if ending.is_detached:
        ending.progress.clear()
    if ending.has_lock:
        release(ending.store, DATASET_LOCK, ending.store.job)
    if ending.is_detached and ending.gate and (failing := outcome(judgements, ending.gate)[1]):
        raise JobError("; ".join(failing))
    return dataset


def _summary_line(summary: Mapping[str, object]) -> str:
    """Formats the line that monitoring looks for."""
    return f"in9 summary: {json.dumps(summary, sort_keys=True)}"


def print_summary(store: Store) -> None:
    """Prints the ended job's summary, but not in a terminal, which has the closing text."""
    if not sys.stdout.isatty():
        print(_summary_line(load_json(store.read(LAST_RUN))["summary"]))


P = ParamSpec("P")


@dataclasses.dataclass(frozen=True)
class MainJob:
    """The parts of a main job.

    Attributes:
      ending: what the last step needs, the dataset's folder, and the analyses that run models.
      pictures: value of `--pictures`, see `write_report`.
      job: the job that makes the dataset; None if the dataset exists.
      lock: the step that takes the dataset's lock; None if the launcher holds it, or the job makes
        no dataset.
    """

    ending: JobSummary
    taxonomy: Taxonomy
    pictures: str
    job: GenerateJob | None = None
    lock: TakeLock | None = None
    publishing: PublishPlan | None = None

    def build(
        self, start: beam.Pipeline | beam.pvalue.PBegin | beam.pvalue.PCollection
    ) -> beam.pvalue.PCollection:
        """Adds all steps; returns a collection of the dataset's fingerprint, for when all is done.

        They start with a pipeline or its root, or behind one element: the dataset's fingerprint, or
        any element if the job makes the dataset.
        """
        if not isinstance(start, beam.pvalue.PCollection):
            start = start | "Start" >> beam.Create([self.ending.before], reshuffle=False)
        if self.lock and self.ending.has_lock:
            start = start | "TakeLock" >> beam.ParDo(self.lock)
        start = start | "Begin" >> beam.Map(_begin, self.ending.progress)
        dataset = start | "Generate" >> GenerateDataset(self.job) if self.job else start
        plans = self.ending.plans.values()
        for plan in plans:
            dataset = dataset | type(plan).__name__ >> ModelStage(plan)
        store = self.ending.store
        if self.ending.gate and self.ending.gate.baseline:
            dataset = dataset | "Baseline" >> _step(_choose_baseline, store, self.ending.gate)
        dataset = dataset | "Report" >> _step(
            write_results, store, self.taxonomy, self.pictures, has_run_models=bool(plans)
        )
        if self.publishing:
            dataset = dataset | "Publish" >> _step(_publish, self.publishing)
        return dataset | "End" >> _step(finish_job, self.ending)


def _begin(start: object, progress: Progress) -> object:
    """Leaves a note by which the launcher knows that workers have begun; passes an element on."""
    progress.store.write(f"{progress.folder}/begin/job.1", b"")
    return start


def _step(
    function: Callable[Concatenate[str, P], str], *args: P.args, **kwargs: P.kwargs
) -> beam.PTransform:
    """Returns a step whose input and output are the dataset's fingerprint."""
    return beam.Map(function, *args, **kwargs).with_output_types(str)


def _choose_baseline(dataset: str, store: Store, gate: Gate) -> str:
    """Stores the choice of the baseline for tables and page; passes the fingerprint on."""
    with locked(store, TABLES_LOCK, wait=60) as fenced:
        gate.choose_baseline(Dataset.open(fenced))
    return dataset


@timed("publish")
def _publish(dataset: str, publishing: PublishPlan) -> str:
    """Publishes the dataset; passes its fingerprint on."""
    if publish(publishing):
        count("versions_published")
    return dataset


def manifest_state(store: Store) -> list[str | None]:
    """Returns the identities of the dataset's manifest files, which differ between its states."""
    infos = [store.files.info(store.path(name)) for name in (MANIFEST, PREVIOUS_MANIFEST)]
    return [None if info is None else info.identity for info in infos]


def check_unchanged(store: Store, seen: list[str | None]) -> None:
    """Raises JobError if the `manifest_state` of a dataset is no longer `seen`."""
    if manifest_state(store) != seen:
        raise JobError(f"{store.root} has changed meanwhile. Run the same command again")


@dataclasses.dataclass(eq=False)
class TakeLock(beam.DoFn):
    """Any element -> the same element, once the job, whose launcher does not, holds the lock.

    Attributes:
      owner: the job, or the process that built it.
      seen: the dataset's `manifest_state` when the graph was built.
    """

    store: Store
    owner: Owner
    seen: list[str | None]

    def process(self, element: object) -> Iterator[object]:
        # A runner may repeat this step. The job then holds the lock already, and its later steps
        # may have changed the manifest, so nothing is checked.
        store, job = self.store, self.store.job
        if not is_held(store, DATASET_LOCK, job):
            acquire(store, DATASET_LOCK, job, self.owner)
            try:
                check_unchanged(store, self.seen)
            except JobError:
                release(store, DATASET_LOCK, job)
                raise
        if "dataflow" not in self.owner:
            # Only Dataflow tells whether an owner still runs, so other owners renew the lock.
            Renewal(store, DATASET_LOCK, job)
        yield element
