"""The graph of all commands that make or evaluate a dataset: what each needs of it, in one.

(lock ->) generate -> stages that run models -> page (-> publish) -> end
"""

from __future__ import annotations

import dataclasses

import apache_beam as beam

from pipeline.evaluate.model_stage import ModelStage
from pipeline.evaluate.work import Work
from pipeline.generate.graph import Generate
from pipeline.generate.job import Job
from pipeline.jobs.last_run import End, Ending
from pipeline.jobs.publish import Publishing
from pipeline.jobs.publish_step import Publish
from pipeline.jobs.start import TakeLock
from pipeline.report.stage import WriteResults
from transforms.taxonomy import Taxonomy


@dataclasses.dataclass(frozen=True)
class MainJob:
    """What a main job does.

    Attributes:
      ending: what is said and done at its end; the dataset is named there.
      taxonomy: the classes.
      pictures: as for `write_report`.
      job: makes the dataset, if anything is to be made.
      works: what is done with models, in order.
      lock: takes the dataset's lock, if the launcher does not hold it.
      publishing: where it is published, if it is.
    """

    ending: Ending
    taxonomy: Taxonomy
    pictures: str
    job: Job | None = None
    works: tuple[Work, ...] = ()
    lock: TakeLock | None = None
    publishing: Publishing | None = None

    def build(self, pipeline: beam.Pipeline) -> None:
        """Adds all steps."""
        before = self.ending.before
        self.build_after(pipeline | "Start" >> beam.Create([before], reshuffle=False))

    def build_after(self, start: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        """Adds all steps behind one element, with which work begins: the dataset's fingerprint, if
        it is not to be made; returns that, when all is done."""
        if self.lock:
            start = start | "TakeLock" >> beam.ParDo(self.lock)
        dataset = start | "Generate" >> Generate(self.job) if self.job else start
        for work in self.works:
            dataset = dataset | type(work).__name__ >> ModelStage(work)
        store, runs_models = self.ending.store, bool(self.works)
        report = WriteResults(store, self.taxonomy, self.pictures, has_run_models=runs_models)
        dataset = dataset | "Report" >> _step(report)
        if self.publishing:
            dataset = dataset | "Publish" >> _step(Publish(self.publishing))
        return dataset | "End" >> _step(End(self.ending))


def _step(step: beam.DoFn) -> beam.PTransform:
    """A step from the dataset's fingerprint to the same."""
    return beam.ParDo(step).with_output_types(str)
