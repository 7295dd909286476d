"""The graph of run, generate and evaluate: what each needs of it, in one.

(lock ->) generate -> evaluate -> ImageNet, attack, saliency -> page (-> publish) -> end
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import apache_beam as beam

from pipeline.generate.graph import Generate
from pipeline.generate.job import Job
from pipeline.jobs.last_run import End, Ending
from pipeline.jobs.publish import Publishing
from pipeline.jobs.publish_step import Publish
from pipeline.jobs.start import TakeLock
from pipeline.report.stage import WriteResults
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.analyses.attack.plan import Attacking
    from pipeline.analyses.saliency.plan import SaliencyPlan


@dataclasses.dataclass(frozen=True)
class MainJob:
    """What a main job does.

    Attributes:
      ending: what is said and done at its end; the dataset and the models are named there.
      taxonomy: the classes.
      pictures: as for `write_report`.
      lock: takes the dataset's lock, if the launcher does not hold it.
      publishing: where it is published, if it is.
      job: makes the dataset, if anything is to be made.
      imagenet: folder of ImageNet to measure the models on, if any.
      attacking: the attack, if there is one.
      explaining: the saliency, if there is any.
    """

    ending: Ending
    taxonomy: Taxonomy
    pictures: str
    lock: TakeLock | None = None
    publishing: Publishing | None = None
    job: Job | None = None
    imagenet: str | None = None
    attacking: Attacking | None = None
    explaining: SaliencyPlan | None = None

    def build(self, start: beam.pvalue.PCollection) -> None:
        """Adds all steps behind one element, with which work begins."""
        if self.lock:
            start = start | "TakeLock" >> beam.ParDo(self.lock)
        if self.job:
            dataset = start | "Generate" >> Generate(self.job, self.taxonomy)
        else:
            there = self.ending.before
            dataset = start | "Dataset" >> beam.Map(lambda _: there).with_output_types(str)
        store = self.ending.store
        evaluates = self.ending.evaluation is not None
        if evaluates:
            dataset = self._inference(dataset)
        report = WriteResults(store, self.taxonomy, self.pictures, has_run_models=evaluates)
        dataset = dataset | "Report" >> _step(report)
        if self.publishing:
            dataset = dataset | "Publish" >> _step(Publish(self.publishing))
        _ = dataset | "End" >> _step(End(self.ending))

    def _inference(self, dataset: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        from pipeline.evaluate.stage import Evaluate  # As others that need torch.

        evaluation = self.ending.evaluation
        assert evaluation is not None
        dataset = dataset | "Evaluate" >> Evaluate(evaluation, self.taxonomy)
        if self.imagenet:
            from pipeline.analyses.imagenet.stage import ImageNetAccuracy

            accuracy = ImageNetAccuracy(evaluation, self.imagenet, self.taxonomy)
            dataset = dataset | "ImageNet" >> accuracy
        if self.attacking:
            from pipeline.analyses.attack.stage import Attack

            dataset = dataset | "Attack" >> Attack(self.attacking, self.taxonomy)
        if self.explaining:
            from pipeline.analyses.saliency.stage import Saliency

            dataset = dataset | "Saliency" >> Saliency(self.explaining, self.taxonomy)
        return dataset


def _step(step: beam.DoFn) -> beam.PTransform:
    """A step from the dataset's fingerprint to the same."""
    return beam.ParDo(step).with_output_types(str)
