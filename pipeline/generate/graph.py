"""Generate: the part of the graph that makes a dataset.

    list -> Examine -> Segment -> Plan -> Compose -> Commit

Through it travel keys, paths and records, never pixels.
"""

from __future__ import annotations

import apache_beam as beam

from pipeline.generate.commit import Commit
from pipeline.generate.compose import ComposedShard, ComposeShard
from pipeline.generate.examine import (
    CountRebuild,
    Examine,
    ExaminedShard,
    Hold,
    LayersBefore,
    Rebuild,
    add_up,
)
from pipeline.generate.job import Job
from pipeline.generate.list_split import ListSplit
from pipeline.generate.plan import OutputShard, PlanSplit
from pipeline.generate.segment import SegmentShard
from pipeline.generate.segmented import SegmentedShard
from pipeline.sources.listing import SourceShard
from transforms.taxonomy import Taxonomy


class Generate(beam.PTransform):
    """Makes what is missing of a dataset: PBegin, or one element that comes when work may
    begin -> the dataset's fingerprint, one element."""

    def __init__(self, job: Job, taxonomy: Taxonomy) -> None:
        super().__init__()
        self._job = job
        self._taxonomy = taxonomy

    def expand(
        self, start: beam.pvalue.PBegin | beam.pvalue.PCollection
    ) -> beam.pvalue.PCollection:
        job, config = self._job, self._job.config
        if isinstance(start, beam.pvalue.PBegin):
            start = start | "Once" >> beam.Create([None], reshuffle=False)
        splits = list(config.split)
        examined = (
            start
            | "Splits" >> beam.FlatMap(lambda _: splits).with_output_types(str)
            | "List" >> beam.ParDo(ListSplit(job, self._taxonomy)).with_output_types(SourceShard)
            | "SpreadSources" >> beam.Reshuffle()
            | "Examine"
            >> beam.ParDo(
                Examine(config.segment, job.layer_staging(), config.layers)
            ).with_output_types(ExaminedShard)
        )
        allowed = []
        if job.hold is not None:
            allowed.append(beam.pvalue.AsIter(self._hold(examined, job.hold)))
            examined = examined | "SpreadExamined" >> beam.Reshuffle()
        segment = SegmentShard(
            config.segment,
            job.layer_staging(),
            job.previous,
            job.progress,
            self._taxonomy.num_labels,
        )
        segmented = examined | "Segment" >> beam.ParDo(segment, *allowed).with_output_types(
            SegmentedShard
        )
        composed = (
            segmented
            | "BySplit" >> beam.WithKeys(_split_of)
            | "GatherSplit" >> beam.GroupByKey()
            | "Plan"
            >> beam.ParDo(
                PlanSplit(config.compose, job.output_staging(), config.segment, job.scenes)
            ).with_output_types(OutputShard)
            | "SpreadOutputs" >> beam.Reshuffle()
            | "Compose"
            >> beam.ParDo(
                ComposeShard(
                    config.segment,
                    config.compose,
                    job.output_staging(),
                    self._taxonomy,
                    job.progress,
                )
            ).with_output_types(ComposedShard)
        )
        commit = Commit(config, job.store, self._taxonomy)
        return start | "Commit" >> beam.ParDo(
            commit, shards=beam.pvalue.AsList(composed)
        ).with_output_types(str)

    def _hold(
        self, examined: beam.pvalue.PCollection, before: LayersBefore
    ) -> beam.pvalue.PCollection:
        """One element, if what has to be made again is little enough."""
        config = self._job.config.segment
        return (
            examined
            | "CountRebuild"
            >> beam.ParDo(CountRebuild(self._job.layer_staging())).with_output_types(Rebuild)
            | "AddUp" >> beam.CombineGlobally(add_up)
            | "Hold" >> beam.ParDo(Hold(config, before)).with_output_types(Rebuild)
        )


def _split_of(shard: SegmentedShard) -> str:
    return shard.totals.split
